//! The coordinator: takes events from the cluster, the agents and AWS, lets the core decide, and carries it out.
//! No rules live here.

pub mod action;
pub mod autoscaling;
mod broker;
pub mod buffers;
pub mod clock;
pub mod cluster;
mod config_map;
pub mod decisions;
pub mod driver;
pub mod effects;
mod evictions;
pub mod http;
mod https;
pub mod kubernetes;
pub mod lease;
pub mod metrics;
pub mod metrics_api;
pub mod picture;
mod ray;
pub mod real;
pub mod record;
mod remembered;
pub mod reports;
pub mod standing;
pub mod status;
pub mod tls;
pub mod token;
mod webhook;

mod args;
pub mod logging;
mod names;
mod run;

pub use args::Args;
pub use run::{check_config, run};
