//! The rules of Ebb: what a node is doing, what the cluster needs, what to change, and why.
//!
//! Everything here is told the time and does no I/O. The coordinator, the agent's drain and the simulator drive
//! the same code: one way in (`handle`), a list of actions out, and `next_wakeup` to say when to call again.

pub mod admission;
mod agenda;
pub mod broker;
pub mod buffer;
pub mod classify;
pub mod cron;
pub mod decision;
pub mod disruption;
pub mod drain;
pub mod fleet;
pub mod instance;
pub mod intent;
mod intern;
pub mod journal;
pub mod kubernetes;
pub mod launch;
pub mod lease;
pub mod notice;
pub mod policy;
pub mod preflight;
pub mod price;
pub mod ray;
pub mod reason;
pub mod recording;
pub mod report;
pub mod resources;
pub mod schedule;
pub mod storage;
pub mod time;
pub mod units;
pub mod usage;
pub mod view;
pub mod xid;
