//! Where the figures come from: one module per source, each of which fails alone.
//! Sources read and parse; rates, windows and classes belong to `rates` and the core.

pub mod cgroup;
pub mod ebpf;
pub mod gpu;
pub mod imds;
pub mod kmsg;
pub mod kubepods;
pub mod logind;
pub mod pod_resources;
pub mod polled;
pub mod pressure;
pub mod proc;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// How every file is opened: a pipe in its place must not hold the sampler up. It is an empty file or an error.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// A source's name in metrics and messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    Cgroup,
    Cpu,
    CudaLaunches,
    Ebpf,
    Gpu,
    Imds,
    Kmsg,
    Logind,
    Memory,
    PodResources,
    Pressure,
    Replay,
    Schedstat,
}

impl Source {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Cpu => "cpu",
            Self::CudaLaunches => "cuda_launches",
            Self::Ebpf => "ebpf",
            Self::Gpu => "gpu",
            Self::Imds => "imds",
            Self::Kmsg => "kmsg",
            Self::Logind => "logind",
            Self::Memory => "memory",
            Self::PodResources => "pod_resources",
            Self::Pressure => "pressure",
            Self::Replay => "replay",
            Self::Schedstat => "schedstat",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("understand {}: {malformed}", path.display())]
    Malformed { path: PathBuf, malformed: Malformed },
    #[error("find cgroups below {}: neither version 2 nor `cpuacct` is mounted there", root.display())]
    NoCgroups { root: PathBuf },
    #[error(transparent)]
    Ebpf(#[from] ebpf::Error),
    #[error(transparent)]
    Gpu(#[from] gpu::Error),
    #[error("read {}: the kernel overwrote {count} times what was not read yet", path.display())]
    Overrun { path: PathBuf, count: u64 },
    #[error(transparent)]
    Imds(#[from] imds::Error),
    #[error(transparent)]
    Logind(#[from] logind::Error),
    #[error(transparent)]
    PodResources(#[from] pod_resources::Error),
    #[error(transparent)]
    Replay(#[from] crate::replay::Error),
}

impl Error {
    /// A label for metrics, from a closed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Read { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "missing",
                io::ErrorKind::PermissionDenied => "permission",
                _ => "read",
            },
            Self::Malformed { .. } => "malformed",
            Self::NoCgroups { .. } => "missing",
            Self::Ebpf(error) => error.kind(),
            Self::Gpu(error) => error.kind(),
            Self::Overrun { .. } => "overrun",
            Self::Imds(error) => error.kind(),
            Self::Logind(error) => error.kind(),
            Self::PodResources(error) => error.kind(),
            Self::Replay(_) => "replay",
        }
    }

    /// What does not exist, or no longer: a cgroup may go away between two reads.
    fn is_gone(&self) -> bool {
        // ENODEV: an open file of a cgroup that was removed.
        const ENODEV: i32 = 19;
        match self {
            Self::Read { source, .. } => {
                source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(ENODEV)
            }
            _ => false,
        }
    }
}

/// A text that is not what its file should hold; says what was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {0}")]
pub struct Malformed(pub &'static str);

pub(crate) fn open(path: &Path) -> io::Result<File> {
    Ok(rustix::fs::open(path, READ, Mode::empty())?.into())
}
