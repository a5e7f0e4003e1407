//! What the coordinator writes to the cluster: drain intents on Nodes, and Events and buffers' statuses that tell people
//! why.

use ebb_core::buffer;
use ebb_core::fleet::{Failure, RayGroup};
use ebb_core::intent::{Intent, decode};
use ebb_core::ray::ScaleStatus;
use ebb_core::reason::Reason;
use ebb_kubernetes::intent::{self, Change};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;

use crate::effects::CallError;
use crate::{buffers, ray};

/// Who we are, in Events and in `managedFields`.
pub const CONTROLLER: &str = "ebb-coordinator";
/// What the API server takes in an Event's note.
const NOTE_CHARS: usize = 1000;
/// An object's name has at most 253 characters; an Event's is its object's and a time.
const NAME_CHARS: usize = 230;

const POD_DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Where Events on objects without a namespace are.
const NODES_EVENTS: &str = "default";

pub struct Kubernetes {
    client: Client,
    /// Which replica says it.
    identity: String,
}

impl Kubernetes {
    pub fn new(client: Client, identity: String) -> Self {
        Self { client, identity }
    }

    /// Writes the intent, if the Node has this UID and no other intent than an earlier form of it.
    pub async fn drain(&self, node: &str, uid: &str, intent: &Intent) -> Result<(), CallError> {
        let decide = |standing: Option<&str>| match standing.map(|text| (text, decode::<Intent>(text))) {
            None => Ok(Some(Change::Put(intent.clone()))),
            Some((_, Some(standing))) if standing == *intent => Ok(None),
            Some((_, Some(standing))) if standing.id == intent.id => Ok(Some(Change::Put(intent.clone()))),
            // A person's words, too: their agent makes an intent of them.
            Some((other, _)) => Err(conflict(format!("node {node} has another intent: {other}"))),
        };
        intent::change(&self.client, CONTROLLER, (node, uid), decide).await
    }

    /// Removes the intent, if it is still this one.
    pub async fn cancel_drain(&self, node: &str, uid: &str, id: &str) -> Result<(), CallError> {
        let decide = |standing: Option<&str>| match standing.and_then(decode::<Intent>) {
            Some(standing) if standing.id == id => Ok(Some(Change::Remove)),
            // Gone, or another's: there is nothing of ours to remove.
            _ => Ok(None),
        };
        intent::change(&self.client, CONTROLLER, (node, uid), decide).await
    }

    /// Writes the status of a buffer.
    pub async fn show_buffer(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        status: &buffer::Status,
    ) -> Result<(), CallError> {
        buffers::show(&self.client, namespace, name, uid, status).await
    }

    /// Sets replicas of a RayCluster.
    pub async fn scale_ray_cluster(
        &self,
        cluster: &str,
        resource_version: &str,
        groups: &[RayGroup],
    ) -> Result<(), CallError> {
        ray::scale_cluster(&self.client, cluster, resource_version, groups).await
    }

    /// Without grace: a token of the pod holds for as long as it is there.
    pub async fn delete_pod(&self, namespace: &str, pod: &str, uid: &str) -> Result<(), CallError> {
        let uid = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() }.grace_period(0);
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        api.delete(pod, &params).await.map_err(|error| call_error(&error))?;
        Ok(())
    }

    /// Says which of its ReplicaSet's pods is to go first.
    pub async fn set_pod_deletion_cost(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        cost: Option<i32>,
    ) -> Result<(), CallError> {
        let cost = cost.map(|cost| cost.to_string());
        let patch = json!({"metadata": {"uid": uid, "annotations": {POD_DELETION_COST: cost}}});
        let params = PatchParams { field_manager: Some(CONTROLLER.into()), ..PatchParams::default() };
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        api.patch_metadata(pod, &params, &Patch::Merge(patch)).await.map_err(|error| call_error(&error))?;
        Ok(())
    }

    /// Writes the status of a RayWorkerGroup.
    pub async fn show_ray_worker_group(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        status: &ScaleStatus,
    ) -> Result<(), CallError> {
        ray::show_group(&self.client, namespace, name, uid, status).await
    }

    /// Tells people, by an Event on the pod. The core says each thing once, so there is nothing to fold.
    pub async fn explain(&self, namespace: &str, pod: &str, uid: &str, because: &Reason) -> Result<(), CallError> {
        let regarding = ObjectReference {
            kind: Some("Pod".into()),
            name: Some(pod.to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        let event = self.event(namespace, regarding, &because.to_string(), because);
        let api = Api::<Event>::namespaced(self.client.clone(), namespace);
        api.create(&PostParams::default(), &event).await.map_err(|error| call_error(&error))?;
        Ok(())
    }

    /// Tells people, by an Event on the node, what was done to it. Nobody waits for that: it is done, told or not.
    pub fn tell_of_node(&self, node: &str, uid: Option<&str>, what: &str, because: &Reason) {
        let regarding = ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            // The kubelet's own way to name one whose UID it does not know; `kubectl describe` looks for both.
            uid: Some(uid.unwrap_or(node).to_owned()),
            ..ObjectReference::default()
        };
        let event = self.event(NODES_EVENTS, regarding, &format!("{what}: {because}"), because);
        let api = Api::<Event>::namespaced(self.client.clone(), NODES_EVENTS);
        tokio::spawn(async move {
            if let Err(error) = api.create(&PostParams::default(), &event).await {
                tracing::debug!(%error, note = event.note, "cannot say this as an Event");
            }
        });
    }

    fn event(&self, namespace: &str, regarding: ObjectReference, note: &str, because: &Reason) -> Event {
        let now = Timestamp::now();
        let short = |text: &str, most| text.chars().take(most).collect::<String>();
        let name = short(regarding.name.as_deref().unwrap_or_default(), NAME_CHARS);
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            action: Some("Autoscale".into()),
            event_time: Some(MicroTime(now)),
            note: Some(short(note, NOTE_CHARS)),
            reason: Some(because.name().into()),
            regarding: Some(ObjectReference { api_version: Some("v1".into()), ..regarding }),
            reporting_controller: Some(CONTROLLER.into()),
            reporting_instance: Some(self.identity.clone()),
            type_: Some(if matches!(because, Reason::NoGroupFits { .. }) { "Warning" } else { "Normal" }.into()),
            ..Event::default()
        }
    }
}

fn conflict(detail: String) -> CallError {
    CallError { failure: Failure::Conflict, detail }
}

impl From<intent::Error> for CallError {
    fn from(error: intent::Error) -> Self {
        let detail = error.to_string();
        match error {
            intent::Error::Api { source, .. } => call_error(&source),
            intent::Error::KeptChanging { source, .. } => {
                Self { detail: format!("{detail}: {source}"), ..call_error(&source) }
            }
            intent::Error::Replaced { .. } => Self { failure: Failure::NotFound, detail },
        }
    }
}

pub(crate) fn call_error(error: &kube::Error) -> CallError {
    let failure = match error {
        kube::Error::Api(status) => failure(status.code),
        _ => Failure::Unavailable,
    };
    CallError { failure, detail: error.to_string() }
}

fn failure(code: u16) -> Failure {
    match code {
        401 | 403 => Failure::Denied,
        404 | 410 => Failure::NotFound,
        409 => Failure::Conflict,
        429 => Failure::Throttled,
        400..500 => Failure::Rejected,
        _ => Failure::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_codes_are_told_apart() {
        let check = |code, expected| assert_eq!(failure(code), expected, "{code}");
        check(403, Failure::Denied);
        check(404, Failure::NotFound);
        check(409, Failure::Conflict);
        check(422, Failure::Rejected);
        check(429, Failure::Throttled);
        check(500, Failure::Unavailable);
        check(504, Failure::Unavailable);
    }
}
