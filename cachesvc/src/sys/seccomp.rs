//! Refusing a system call, as a container's seccomp filter does. For tests.

use std::mem::offset_of;

use rustix::io::Errno;

/// Makes a system call fail with `EPERM` for this thread, and for those it starts, from now on.
pub(crate) fn refuse(call: libc::c_long) -> Result<(), Errno> {
    let call = u32::try_from(call).map_err(|_| Errno::INVAL)?;
    let number_at = u32::try_from(offset_of!(libc::seccomp_data, nr)).map_err(|_| Errno::INVAL)?;
    let refusal = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, number_at, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call, 1),
        step(libc::BPF_RET | libc::BPF_K, refusal, 0),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let len = u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: the first call takes no pointer; the second reads `program` and its filter, which outlive it.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
    };
    if refused {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}

/// One instruction; a comparison that fails skips `otherwise` instructions.
fn step(code: u32, value: u32, otherwise: u8) -> libc::sock_filter {
    let code = u16::try_from(code).expect("instruction codes are 16 bits");
    libc::sock_filter { code, jt: 0, jf: otherwise, k: value }
}
