//! A FAKE of AWS's Auto Scaling API, for labs and tests. Nothing here is shipped.
//!
//! It speaks the real wire protocol (AWS Query over HTTP) to any SDK whose endpoint is set to it; signatures are asked for
//! and not checked. What a test against it proves is what the client sent and how it took the answers, not how AWS
//! behaves: that is as good as `service` read the documentation, whose head says what is left out.
//!
//! Beside the API it serves the lab:
//!
//! | Path | |
//! | --- | --- |
//! | `GET /_lab/asg` | all groups with their instances |
//! | `POST /_lab/faults` | what goes wrong from now on, a list of [`faults::Rule`]s; GET shows what is left of it, DELETE ends it |
//! | `POST /_lab/timing` | how long things take, [`service::Timing`]; what is left out stays at its default; GET shows it |
//! | `DELETE /_lab/instances/ID` | EC2 takes the instance away: Spot capacity that is reclaimed, a host that broke |
//!
//! Faults, by example:
//! ```json
//! [{"action": "SetDesiredCapacity", "code": "Throttling", "times": 3},
//!  {"code": "Throttling", "per_second": 5},
//!  {"delay_ms": 2000},
//!  {"action": "SetDesiredCapacity", "drop": true, "effect": true},
//!  {"action": "DescribeAutoScalingGroups", "stale": true, "times": 1},
//!  {"action": "Launch", "group": "gpu", "zone": "us-west-2a", "code": "InsufficientInstanceCapacity"},
//!  {"action": "Boot", "group": "cpu", "times": 1}]
//! ```
//!
//! Each API call is one line in the log, a JSON object: `t`, Unix time in milliseconds at its arrival; `service`,
//! `action`, `params`; `status`, 0 where the connection was closed instead; `ms`, how long the answer took; `fault`.
//!
//! With a kubeconfig, instances become Nodes (`nodes`), as EC2, the kubelet and the cloud-controller-manager have it.

mod config;
mod error;
pub mod faults;
mod ids;
mod instance_types;
mod nodes;
mod query;
mod region;
mod server;
pub mod service;
mod xml;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use jiff::Timestamp;
use tokio::net::TcpListener;

pub use config::{Config, GroupConfig, Taint};
pub use error::ApiError;
pub use query::Params;
pub use server::{Lab, serve};

/// A fake of AWS's Auto Scaling API, for labs and tests
#[derive(clap::Parser)]
pub struct Args {
    /// The lab's configuration, a JSON file as `cargo xtask lab up` writes it
    config: PathBuf,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let path = args.config.display();
    let text = std::fs::read(&args.config).with_context(|| format!("read {path}"))?;
    let config: Config = serde_json::from_slice(&text).with_context(|| format!("read {path}"))?;
    let now = Timestamp::now();
    let seed = now.duration_since(Timestamp::UNIX_EPOCH).as_nanos() as u64;
    let service = config.service(now, seed)?;
    let log = std::fs::File::create(&config.log).with_context(|| format!("create {}", config.log.display()))?;
    let lab = Arc::new(Lab::new(service, Some(log)));
    let address = (std::net::Ipv4Addr::LOCALHOST, config.port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen at port {}", config.port))?;
    tracing::info!(port = config.port, groups = config.groups.len(), "the fake AWS is ready");
    tokio::spawn(nodes::follow(Arc::clone(&lab), config));
    serve(listener, lab).await.context("take connections")
}
