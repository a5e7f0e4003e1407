//! What is read of GPUs: the kernel's log, the table of XIDs, the kubelet's names of devices.

use ebb_agent::source::kmsg;
use ebb_core::xid::Policy;

use crate::text;

/// An error that is found in a record is found whatever the record's own text goes on with.
pub fn kmsg(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Some(found) = kmsg::parse(text) {
        assert!(text.contains(&found.xid.to_string()), "{found:?}");
    }
}

/// A table that is accepted has a version, and one more row of a code that it has is refused.
pub fn xid_policy(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(policy) = Policy::parse(text) {
        assert!(!policy.version().is_empty());
        let twice = format!("{}\n4294967295,watch,twice\n4294967295,watch,twice\n", text.trim_end_matches('\n'));
        assert!(Policy::parse(&twice).is_err());
    }
}
