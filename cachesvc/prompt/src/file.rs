//! Reads the files of a model directory, within limits.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::LoadError;

/// The largest tokenizers published have a few tens of MB.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// The file's bytes; `None` when there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    let failed = |source| LoadError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(LoadError::TooLarge { path: path.to_owned(), bytes, bytes_max: FILE_BYTES_MAX });
    }
    let mut content = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut content).map_err(failed)?;
    Ok(Some(content))
}

/// The file's JSON; the default when there is no such file.
pub(crate) fn read_json<T: DeserializeOwned + Default>(path: &Path) -> Result<T, LoadError> {
    let Some(bytes) = read(path)? else { return Ok(T::default()) };
    serde_json::from_slice(&bytes).map_err(|source| LoadError::Json { path: path.to_owned(), source })
}
