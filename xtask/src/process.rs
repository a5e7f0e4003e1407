//! Running other programs: one way to call a command, to name it in errors, and to find the folders we work in.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// The root of the checkout this xtask was built from.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies one folder below the root")
}

/// Where slow things are kept between runs, outside the tree: `$EBB_CACHE`, else `$XDG_CACHE_HOME/ebb`, else `~/.cache/ebb`.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("EBB_CACHE") {
        return Ok(folder.into());
    }
    if let Some(folder) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(folder).join("ebb"));
    }
    let home = std::env::var_os("HOME").context("find the cache folder: set EBB_CACHE, XDG_CACHE_HOME or HOME")?;
    Ok(PathBuf::from(home).join(".cache/ebb"))
}

/// Runs a command whose output the user sees; a non-zero exit is an error that names the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {}", describe(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", describe(command));
    }
    Ok(())
}

/// Runs a command and returns what it printed; a non-zero exit is an error with its standard error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } = command.output().with_context(|| format!("start {}", describe(command)))?;
    if !status.success() {
        bail!("{} ended with {status}:\n{}", describe(command), String::from_utf8_lossy(&stderr).trim_end());
    }
    String::from_utf8(stdout).with_context(|| format!("read the output of {}", describe(command)))
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
