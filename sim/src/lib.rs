//! The rules of `ebb-core` in virtual time: a world of models around them, and nothing of the rules twice.
//!
//! Same scenario, same seed, same autoscaler: same run, to the millisecond.

mod auto_scaling;
pub mod autoscaler;
pub mod faults;
pub mod file;
pub mod hpa;
mod random;
mod ray;
pub mod run;
pub mod scenario;
pub mod scenarios;
pub mod scheduler;
pub mod soak;
mod world;

pub use world::{Options, Violation, simulate};
