//! Entry point: arguments, one call.

fn main() {}
