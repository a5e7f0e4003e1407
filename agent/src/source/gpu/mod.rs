//! What the GPUs are doing, through NVML, on a thread of its own: a driver can hang in the kernel for minutes.
//! Figures only; what they say of a GPU's fitness is `ebb_core::xid`'s, and XIDs in the kernel's log are `kmsg`'s.

mod answers;
mod detect;
mod device;
mod events;
mod figures;
mod gpm;
mod identity;
mod instance;
mod nvml;
mod processes;
mod slow;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nvml_wrapper::error::NvmlError;

pub use detect::detect;
pub use events::XidEvent;
pub use figures::{
    Activity, Busy, Ecc, Gpu, GpuMemory, GpuProcess, Gpus, MigInstance, NVLINK_ERRORS, Now, Slow, THROTTLE_REASONS,
};
pub use identity::{Identity, PciAddress};
pub use nvml::{Answer, NvmlThread};

/// Cloned, because an attempt that failed is not made again at once, and its reason stands meanwhile.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("load NVML from {}, which comes with NVIDIA's driver", library.display())]
    Load { library: PathBuf, source: Arc<NvmlError> },
    #[error("initialize NVML")]
    Initialize { source: Arc<NvmlError> },
    #[error("list GPUs through NVML")]
    List { source: Arc<NvmlError> },
    #[error("wait for NVML: no answer for {} s; the driver may hang", waited.as_secs())]
    Deadline { waited: Duration },
    #[error("start the thread that asks NVML")]
    Thread { source: Arc<std::io::Error> },
    #[error("ask NVML: its thread ended unexpectedly and is started again")]
    Ended,
    #[error("ask GPU {index} for its {figure}")]
    Figure { index: u32, figure: &'static str, source: Arc<NvmlError> },
}

impl Error {
    /// A label for metrics, from a closed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Load { .. } => "missing",
            Self::Initialize { source } | Self::List { source } | Self::Figure { source, .. } => kind_of(source),
            Self::Deadline { .. } => "deadline",
            Self::Thread { .. } | Self::Ended => "thread",
        }
    }
}

fn kind_of(error: &NvmlError) -> &'static str {
    match error {
        NvmlError::DriverNotLoaded | NvmlError::LibraryNotFound => "missing",
        NvmlError::LibRmVersionMismatch => "mismatch",
        NvmlError::NoPermission => "permission",
        NvmlError::GpuLost | NvmlError::ResetRequired => "lost",
        NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_) => "unsupported",
        NvmlError::Timeout => "deadline",
        _ => "read",
    }
}
