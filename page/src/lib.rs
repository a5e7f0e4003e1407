//! The live page: one router with its assets, served by the coordinator on a real cluster and by `ebb demo --serve` on
//! a simulated one.
