//! The machine that a number belongs to.

use std::fmt;
use std::fs;

use serde::Serialize;

/// The machine that a number belongs to.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Processor, as it names itself.
    pub cpu: String,
    /// Processors that this program may use.
    pub cores: usize,
    /// Last-level cache in bytes; on a virtual machine that of its host.
    pub cache_bytes: usize,
    /// Memory in bytes.
    pub memory_bytes: usize,
    /// Kernel release.
    pub kernel: String,
    /// The compiler that built this program.
    pub rustc: &'static str,
    /// Version of Hearth.
    pub hearth: &'static str,
    /// When the run began, UTC.
    pub date: String,
}

impl Machine {
    /// This machine, now. What it does not say is empty or zero.
    pub fn here() -> Self {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: field(&cpus, "model name").unwrap_or_default().to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cache_bytes: last_level_cache_bytes().unwrap_or_default(),
            memory_bytes: memory_bytes("MemTotal").unwrap_or_default(),
            kernel: kernel.trim().to_owned(),
            rustc: env!("HEARTH_RUSTC"),
            hearth: env!("CARGO_PKG_VERSION"),
            date: jiff::Timestamp::now()
                .round(jiff::Unit::Second)
                .map_or_else(|_| String::new(), |now| now.to_string()),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = self.memory_bytes as f64 / (1u64 << 30) as f64;
        let Self { cpu, cores, kernel, rustc, date, .. } = self;
        write!(f, "{cpu}, {cores} cores, {memory:.0} GiB, Linux {kernel}, {rustc}, {date}")
    }
}

/// Bytes of the largest cache of the first processor.
pub fn last_level_cache_bytes() -> Option<usize> {
    let sizes = (0..8).filter_map(|index| {
        fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()
    });
    sizes.filter_map(|size| parse_size(size.trim())).max()
}

/// Bytes of memory that can be taken without swapping.
pub fn memory_available_bytes() -> Option<usize> {
    memory_bytes("MemAvailable")
}

fn memory_bytes(name: &str) -> Option<usize> {
    let memory = fs::read_to_string("/proc/meminfo").ok()?;
    let kib: usize = field(&memory, name)?.strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The value of `name : value` in the first line that has it.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, v)| v.trim())
}

/// `266240K` in bytes.
fn parse_size(size: &str) -> Option<usize> {
    let digits = size.trim_end_matches(char::is_alphabetic);
    let unit = match &size[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_fields_are_read() {
        assert_eq!(parse_size("266240K"), Some(266_240 * 1024));
        assert_eq!(parse_size("12"), Some(12));
        assert_eq!(parse_size("12X"), None);
        assert_eq!(field("a : 1\nMemTotal:   24 kB\n", "MemTotal"), Some("24 kB"));
    }
}
