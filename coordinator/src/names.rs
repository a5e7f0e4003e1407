//! Who and where we are, when nobody says so.

use std::fs;

use anyhow::Context;

/// The Service that leads to us: to whichever replica leads.
pub(crate) const SERVICE: &str = "ebb-coordinator";
/// Where the kubelet puts a pod's own namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
const HOSTNAME_FILE: &str = "/proc/sys/kernel/hostname";

pub(crate) fn namespace(given: Option<String>) -> String {
    let own = || fs::read_to_string(NAMESPACE_FILE).ok().map(|text| text.trim().to_owned());
    given.or_else(own).unwrap_or_else(|| "ebb".to_owned())
}

pub(crate) fn identity(given: Option<String>) -> anyhow::Result<String> {
    match given {
        Some(identity) => Ok(identity),
        None => {
            let name = fs::read_to_string(HOSTNAME_FILE).with_context(|| format!("read {HOSTNAME_FILE}"))?;
            Ok(name.trim().to_owned())
        }
    }
}
