//! The node agent: samples its node, says whether it is busy or idle, serves metrics, reports, and drains itself.
//! Thresholds and the steps of a drain are the core's; nothing here knows of other nodes.

pub mod args;
pub mod clock;
pub mod cluster;
pub mod drain;
#[doc(hidden)]
pub mod fuzzing;
pub mod gpus;
pub mod health;
pub mod host;
pub mod logging;
pub mod metrics;
mod notices;
pub mod once;
pub mod pods;
pub mod reading;
pub mod record;
pub mod replay;
pub mod rights;
pub mod run;
pub mod sampler;
pub mod server;
mod snapshot;
pub mod source;
pub mod uplink;
mod usage;
mod watching;
pub mod workload;

pub use args::Args;
pub use run::run;
