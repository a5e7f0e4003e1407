//! The coordinator: takes events from the cluster, the agents and AWS, lets the core decide, and carries it out.
//! No rules live here.

pub mod autoscaling;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod standing;
