//! The tenants of a node and their secrets: one file `NAME.key` each.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hearth_proto::tenant::{TenantName, TenantNameError, TenantSecret, TenantSecretError};
use thiserror::Error;

use crate::store::message::TenantIndex;

/// Tenants that a node can have.
pub const TENANTS_MAX: usize = 1024;

/// The tenant that is made when there is none.
const DEFAULT: &str = "default";
const SUFFIX: &str = ".key";

/// Everybody who may own blocks of this node. Fixed at start.
#[derive(Debug)]
pub struct Tenants(Vec<Tenant>);

/// One of them.
#[derive(Debug)]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
    /// From which its keys and proofs are derived.
    pub secret: TenantSecret,
}

/// The tenants' secrets cannot be read.
#[derive(Debug, Error)]
pub enum TenantsError {
    /// The directory or a file cannot be used.
    #[error("{path}: {source}; check --tenants and the permissions of the files in it")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not named after a tenant.
    #[error("{path}: {source}")]
    Name {
        /// The file.
        path: PathBuf,
        /// What is wrong with its name.
        source: TenantNameError,
    },
    /// A file holds no secret.
    #[error("{path}: {source}")]
    Secret {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        source: TenantSecretError,
    },
    /// There are too many.
    #[error("{0} tenants are over the limit of {TENANTS_MAX} for one node")]
    Count(usize),
}

impl Tenants {
    /// Reads all `NAME.key` files of `dir`, in the order of their names. When there is none, makes `default.key` with
    /// `fresh`, readable by its owner only.
    ///
    /// # Errors
    /// When a file cannot be read or is not what it should be.
    pub fn load(dir: &Path, fresh: &TenantSecret) -> Result<Self, TenantsError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| TenantsError::Io { path, source }
        };
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        let mut tenants = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(io(dir))? {
            let path = entry.map_err(io(dir))?.path();
            let name =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
            let Some(name) = name else { continue };
            let name = TenantName::from_str(name)
                .map_err(|source| TenantsError::Name { path: path.clone(), source })?;
            tenants.push(Tenant { name, secret: read(&path)? });
        }
        if tenants.is_empty() {
            let path = dir.join(format!("{DEFAULT}{SUFFIX}"));
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(io(&path))?;
            writeln!(file, "{}", fresh.to_hex()).and_then(|()| file.sync_all()).map_err(io(&path))?;
            tracing::info!(path = %path.display(), "made a secret for the tenant \"default\"");
            let name = TenantName::from_str(DEFAULT).expect("a valid name");
            tenants.push(Tenant { name, secret: fresh.clone() });
        }
        if tenants.len() > TENANTS_MAX {
            return Err(TenantsError::Count(tenants.len()));
        }
        tenants.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self(tenants))
    }

    /// The tenant of this name.
    pub fn find(&self, name: &str) -> Option<(TenantIndex, &Tenant)> {
        let at = self.0.iter().position(|tenant| tenant.name.as_str() == name)?;
        Some((TenantIndex(u16::try_from(at).expect("at most TENANTS_MAX")), &self.0[at]))
    }

    /// All tenants, in the order of their index.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Tenant> {
        self.0.iter()
    }
}

fn read(path: &Path) -> Result<TenantSecret, TenantsError> {
    let io = |source| TenantsError::Io { path: path.to_owned(), source };
    let mode = std::fs::metadata(path).map_err(io)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{mode:o}"), "a tenant's secret is readable by others: chmod 600 it");
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    text.parse().map_err(|source| TenantsError::Secret { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_tenant_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let made = Tenants::load(dir.path(), &TenantSecret::from_bytes([1; 32])).unwrap();
        let again = Tenants::load(dir.path(), &TenantSecret::from_bytes([2; 32])).unwrap();
        assert_eq!(made.find("default").unwrap().1.secret, again.find("default").unwrap().1.secret);
        let mode = std::fs::metadata(dir.path().join("default.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(made.find("other").is_none());
    }

    #[test]
    fn wrong_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.key"), "short").unwrap();
        let error = Tenants::load(dir.path(), &TenantSecret::from_bytes([1; 32])).unwrap_err().to_string();
        assert!(error.contains("a.key") && error.contains("64 hexadecimal digits"), "{error}");
        std::fs::remove_file(dir.path().join("a.key")).unwrap();
        std::fs::write(dir.path().join("Not A Name.key"), "0".repeat(64)).unwrap();
        assert!(matches!(
            Tenants::load(dir.path(), &TenantSecret::from_bytes([1; 32])),
            Err(TenantsError::Name { .. })
        ));
    }
}
