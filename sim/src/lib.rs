//! The rules of `ebb-core` in virtual time: a world of models around them, and nothing of the rules twice.
//!
//! Same scenario, same seed, same autoscaler: same run, to the millisecond.

pub mod random;
pub mod scenario;
pub mod scheduler;
