//! The drain intent on a Node, written so that nobody's word is lost: only on the very Node that was meant, and only as
//! it was when that was decided.

use ebb_core::intent::{INTENT_ANNOTATION, Intent, encode};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

/// A Node changes under us when its kubelet or agent writes it; then we look again. More than this many times in a row
/// is no accident.
const ATTEMPTS: usize = 3;

/// What becomes of the annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(Intent),
    Remove,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("change node {node}")]
    Api { node: String, source: kube::Error },
    #[error("node {node} kept changing")]
    KeptChanging { node: String, source: kube::Error },
    #[error("node {node} is not {uid} any more")]
    Replaced { node: String, uid: String },
}

/// Changes the annotation of the Node with this UID as `decide` says from what stands there, which may be a person's own
/// words (`None`: it stays); the resource version makes that one step. `manager`: who we are, in `managedFields`.
pub async fn change<E: From<Error>>(
    client: &Client,
    manager: &str,
    (name, uid): (&str, &str),
    decide: impl Fn(Option<&str>) -> Result<Option<Change>, E>,
) -> Result<(), E> {
    let api = Api::<Node>::all(client.clone());
    let failed = |source| Error::Api { node: name.to_owned(), source };
    let mut attempt = 1;
    loop {
        let node = api.get_metadata(name).await.map_err(failed)?;
        if node.uid().as_deref() != Some(uid) {
            return Err(Error::Replaced { node: name.to_owned(), uid: uid.to_owned() }.into());
        }
        let standing = node.annotations().get(INTENT_ANNOTATION);
        let Some(change) = decide(standing.map(String::as_str))? else { return Ok(()) };
        let patch = patch(uid, node.resource_version().as_deref(), &change);
        let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
        match api.patch_metadata(name, &params, &Patch::Merge(patch)).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 && attempt < ATTEMPTS => attempt += 1,
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let source = kube::Error::Api(status);
                return Err(Error::KeptChanging { node: name.to_owned(), source }.into());
            }
            Err(source) => return Err(failed(source).into()),
        }
    }
}

/// A merge patch that fails where the Node is another one, or is not as it was.
fn patch(uid: &str, resource_version: Option<&str>, change: &Change) -> Value {
    let value = match change {
        Change::Put(intent) => encode(intent).into(),
        Change::Remove => Value::Null,
    };
    json!({"metadata": {"uid": uid, "resourceVersion": resource_version, "annotations": {INTENT_ANNOTATION: value}}})
}

#[cfg(test)]
mod tests {
    use ebb_core::intent::{Permits, Trigger};
    use ebb_core::time::Instant;

    use super::*;

    #[test]
    fn a_patch_names_the_node_by_uid_and_by_how_it_was() {
        let patched = |change| patch("u-1", Some("7"), &change).to_string();
        let expected = r#"{"metadata":{"annotations":{"ebb.dev/drain":null},"resourceVersion":"7","uid":"u-1"}}"#;
        assert_eq!(patched(Change::Remove), expected);
        let intent = Intent {
            id: "person-1".into(),
            reason: "disk".into(),
            requested_at: Instant::from_millis(0),
            deadline: Instant::from_millis(1),
            evict: true,
            by: Trigger::Person,
            awaits_turn: false,
            permits: Permits::default(),
        };
        let text = encode(&intent);
        let value: Value = serde_json::from_str(&patched(Change::Put(intent))).unwrap();
        assert_eq!(value["metadata"]["annotations"][INTENT_ANNOTATION], text);
    }
}
