//! What several of Ebb's programs ask of the Kubernetes API server, so that it is asked in one way: drain intents on
//! Nodes, and evictions.

mod chain;
pub mod eviction;
pub mod intent;

pub use chain::chain;
