//! The `Accept` header of a scrape.

use ebb_agent::metrics::Exposition;

use crate::text;

/// Nobody gets OpenMetrics who did not name it, and neither letter case nor spaces, nor the order of what is asked for,
/// make a difference.
pub fn target(bytes: &[u8]) {
    let Some(accept) = text(bytes).filter(|accept| accept.is_ascii()) else { return };
    let wanted = Exposition::wanted(Some(accept));
    let lower = accept.to_ascii_lowercase();
    if wanted == Exposition::OpenMetrics {
        assert!(lower.contains("application/openmetrics-text"));
    }
    assert_eq!(Exposition::wanted(Some(&lower)), wanted, "letter case");
    let backwards: Vec<_> = accept.split(',').rev().collect();
    assert_eq!(Exposition::wanted(Some(&backwards.join(" , "))), wanted, "order");
    assert_eq!(Exposition::wanted(Some(&format!("text/html,{accept}"))), wanted, "something else");
}
