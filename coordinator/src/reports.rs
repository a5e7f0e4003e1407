//! Takes the agents' reports: one gRPC stream from each, over TLS, shown to be from the node it is about.

mod limits;
mod server;
mod service;

pub use server::serve;
pub use service::{Gate, Service};
