//! The configuration file, and its way into the core's [`Policy`].
//!
//! Everything wrong is found here, before anything starts, and said with its line: what comes out needs no checks.

mod check;
mod file;
mod hooks;
mod ray;

pub use check::{Check, count};
pub use hooks::{Call, DEFAULT_TIMEOUT, Service, parse_hooks, read_hooks};

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ebb_core::policy::{Policy, ScaleDown, ScaleUp};
use ebb_core::time::parse_duration;

/// What the command line or the environment say in place of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "In place of the file's values")]
pub struct Overrides {
    /// How long a pod must have been unschedulable before a node is added for it [scaleUp.pendingFor]
    #[arg(long, env = "EBB_PENDING_FOR", value_name = "DURATION", value_parser = parse_duration)]
    pub pending_for: Option<Duration>,
    /// How long a node must be idle and without work before it is drained [scaleDown.unneededFor]
    #[arg(long, env = "EBB_UNNEEDED_FOR", value_name = "DURATION", value_parser = parse_duration)]
    pub unneeded_for: Option<Duration>,
    /// The same for groups with GPUs [scaleDown.gpuUnneededFor]
    #[arg(long, env = "EBB_GPU_UNNEEDED_FOR", value_name = "DURATION", value_parser = parse_duration)]
    pub gpu_unneeded_for: Option<Duration>,
    /// Nodes that drain at the same time [scaleDown.maxParallelDrains]
    #[arg(long, env = "EBB_MAX_PARALLEL_DRAINS", value_name = "NODES", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_parallel_drains: Option<u32>,
}

impl Overrides {
    /// Before the groups are read, which take their defaults from here.
    fn apply(&self, scale_up: &mut ScaleUp, scale_down: &mut ScaleDown) {
        scale_up.pending_for = self.pending_for.unwrap_or(scale_up.pending_for);
        scale_down.unneeded_for = self.unneeded_for.unwrap_or(scale_down.unneeded_for);
        scale_down.gpu_unneeded_for = self.gpu_unneeded_for.unwrap_or(scale_down.gpu_unneeded_for);
        scale_down.max_parallel_drains = self.max_parallel_drains.unwrap_or(scale_down.max_parallel_drains);
    }
}

/// Reads a file.
pub fn read(path: &Path, overrides: &Overrides) -> Result<Policy, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    parse(&text, overrides).map_err(|problems| Error::Invalid { path: path.to_owned(), problems })
}

/// Reads a file's text; says all that is wrong with it, in the file's order.
pub fn parse(text: &str, overrides: &Overrides) -> Result<Policy, Vec<Problem>> {
    check::policy(&from_text(text).map_err(|problem| vec![problem])?, overrides)
}

/// The configuration as a part of a larger file, such as a scenario's.
#[derive(serde::Deserialize)]
#[serde(transparent)]
pub struct Section(file::File);

impl Section {
    /// Says all that is wrong with it, in the file's order.
    pub fn policy(&self) -> Result<Policy, Vec<Problem>> {
        check::policy(&self.0, &Overrides::default())
    }
}

/// A value as it is written, and where.
pub type Text = serde_saphyr::Spanned<String>;

/// Reads a file's form. What its values mean is for a [`Check`].
pub fn from_text<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Problem> {
    serde_saphyr::from_str(text).map_err(|error| file::problem(&error))
}

/// Something wrong at a place of the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub line: u64,
    pub column: u64,
    pub message: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {path}", path = path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}", Listed { path, problems })]
    Invalid { path: PathBuf, problems: Vec<Problem> },
}

/// One problem a line, the way compilers write them, so that editors can jump there.
struct Listed<'a> {
    path: &'a Path,
    problems: &'a [Problem],
}

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { line, column, message }) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}:{line}:{column}: {message}", self.path.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
