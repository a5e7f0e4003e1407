//! Texts that are kept beside the tests. `UPDATE_GOLDEN=1` writes them anew.

use std::fs;
use std::path::Path;

/// `path`: from this package's folder.
pub(crate) fn is_golden(printed: &str, path: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, printed).unwrap();
    }
    assert_eq!(printed, fs::read_to_string(&golden).unwrap_or_default(), "{path}");
}
