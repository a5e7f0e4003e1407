//! Takes the agents' reports: one gRPC stream from each, over TLS, shown to be from the node it is about.

mod limits;
mod server;
mod service;
mod token;

pub use server::serve;
pub use service::{Gate, Service};
pub use token::{ClusterReview, Review, Tokens};
