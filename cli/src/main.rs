//! Entry point: arguments, one call.

#[cfg_attr(not(test), expect(dead_code, reason = "the demo is to draw with it"))]
mod picture;

fn main() {}
