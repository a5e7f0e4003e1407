//! What the coordinator writes for an agent that may write nothing itself (`agent.rights: brokered`): to the node of the
//! pod that the agent's token is bound to, and there only what a drain changes.
//!
//! A list of what may be, so that it also holds what Kubernetes has not got yet: every field that is not named is
//! refused, and with it the directives of strategic merge patches.

use std::fmt;

use serde_json::Value;

use crate::admission::{self, Found};
use crate::drain::Target;
use crate::intent::{CONDITION_DRAINED, CONDITION_DRAINING, CONDITION_PLANNED, INTENT_ANNOTATION, PROGRESS_ANNOTATION};
use crate::kubernetes::EXCLUDED_LABEL;

/// Filled in by the API server for every token of a pod (from Kubernetes 1.22).
pub const POD_NAME_CLAIM: &str = "authentication.kubernetes.io/pod-name";
pub const POD_UID_CLAIM: &str = "authentication.kubernetes.io/pod-uid";

/// As whose an agent's changes are kept in `managedFields`.
pub const FIELD_MANAGER: &str = "ebb-agent";

/// What a token says of its bearer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    pub pod: Option<String>,
    pub pod_uid: Option<String>,
    /// From Kubernetes 1.30, for a pod that had its node when the token was made.
    pub node: Option<String>,
    pub node_uid: Option<String>,
}

/// The Node that an agent speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    pub node: String,
    pub node_uid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the token is not bound to a pod, and so to no node")]
    NotBound,
    #[error("pod {0}, to which the token is bound, is gone")]
    PodGone(String),
    #[error("pod {0}, to which the token is bound, has no node")]
    NoNode(String),
    #[error("the token is bound to node {claimed}, and its pod is on {found}")]
    Moved { claimed: String, found: String },
    #[error("node {0} is another one than that to which the agent's token is bound")]
    OtherNode(String),
    #[error("node {asked} is not the agent's own, which is {own}")]
    NotOwn { asked: String, own: String },
    #[error("an agent may not set {0}: nothing of a drain")]
    Field(String),
    #[error("an agent may set {field} only to {expected}")]
    Value { field: String, expected: String },
    #[error("an agent asks for dryRun=All and fieldManager={FIELD_MANAGER}, and not for {0}")]
    Parameter(String),
    #[error("{0} is not the name of an object")]
    Name(String),
    #[error(transparent)]
    Eviction(#[from] admission::Refusal),
}

/// The node of a token's bearer. Without the claims about the node its pod tells: that must be the very one, and no older
/// than the Node, or it is left over from an earlier one of that name.
pub fn own_node(claims: &Claims, found: &Found) -> Result<Own, Refusal> {
    let (Some(pod), Some(pod_uid)) = (&claims.pod, &claims.pod_uid) else { return Err(Refusal::NotBound) };
    if found.pod_uid.as_ref() != Some(pod_uid) {
        return Err(Refusal::PodGone(pod.clone()));
    }
    let Some(node) = &found.node else { return Err(Refusal::NoNode(pod.clone())) };
    if let Some(claimed) = claims.node.as_ref().filter(|claimed| *claimed != node) {
        return Err(Refusal::Moved { claimed: claimed.clone(), found: node.clone() });
    }
    let Some(node_uid) = &found.node_uid else { return Err(Refusal::OtherNode(node.clone())) };
    let is_it = match &claims.node_uid {
        Some(claimed) => claimed == node_uid,
        None => found.pod_made.zip(found.node_made).is_some_and(|(pod, node)| pod >= node),
    };
    if !is_it {
        return Err(Refusal::OtherNode(node.clone()));
    }
    Ok(Own { node: node.clone(), node_uid: node_uid.clone() })
}

/// Whether an address asks for a dry run.
pub fn is_dry_run(parameters: impl IntoIterator<Item = (impl AsRef<str>, impl AsRef<str>)>) -> Result<bool, Refusal> {
    let mut dry_run = false;
    for (key, value) in parameters {
        match (key.as_ref(), value.as_ref()) {
            ("dryRun", "All") => dry_run = true,
            ("fieldManager", FIELD_MANAGER) => {}
            (key, value) => return Err(Refusal::Parameter(cut(&format!("{key}={value}")))),
        }
    }
    Ok(dry_run)
}

/// A merge patch of a Node, as it may be sent on: of that very Node.
pub fn node_patch(own: &Own, asked: &str, patch: Value) -> Result<Value, Refusal> {
    held(own, asked, patch, &NODE)
}

/// The same for a strategic merge patch of its status, which merges conditions by type.
pub fn status_patch(own: &Own, asked: &str, patch: Value) -> Result<Value, Refusal> {
    held(own, asked, patch, &STATUS)
}

fn held(own: &Own, asked: &str, mut patch: Value, shape: &Shape) -> Result<Value, Refusal> {
    if asked != own.node {
        return Err(Refusal::NotOwn { asked: cut(asked), own: own.node.clone() });
    }
    shape.check(&Path::default(), &patch)?;
    // Should the Node be made anew at this moment, this is not about the new one.
    patch["metadata"]["uid"] = own.node_uid.clone().into();
    Ok(patch)
}

/// What is to become of a pod: an Eviction or DeleteOptions, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    pub pod: Target,
    pub grace_seconds: Option<u32>,
    /// In the body of a deletion; an eviction has it in its address.
    pub dry_run: bool,
}

/// The body of an Eviction of this pod.
pub fn eviction(namespace: &str, name: &str, body: &Value) -> Result<Removal, Refusal> {
    removal(namespace, name, body, &EVICTION, &body["deleteOptions"])
}

/// The body of a deletion of this pod.
pub fn deletion(namespace: &str, name: &str, body: &Value) -> Result<Removal, Refusal> {
    removal(namespace, name, body, &DELETION, body)
}

fn removal(namespace: &str, name: &str, body: &Value, shape: &Shape, options: &Value) -> Result<Removal, Refusal> {
    for part in [namespace, name] {
        if !is_name(part) {
            return Err(Refusal::Name(cut(part)));
        }
    }
    let Some(uid) = options["preconditions"]["uid"].as_str() else { return Err(admission::Refusal::NoUid.into()) };
    shape.check(&Path::default(), body)?;
    Ok(Removal {
        pod: Target { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() },
        grace_seconds: options["gracePeriodSeconds"].as_u64().and_then(|seconds| u32::try_from(seconds).ok()),
        dry_run: options["dryRun"].as_array().is_some_and(|all| !all.is_empty()),
    })
}

/// Whether it can stand in an address as it is (RFC 1123).
fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = |label: &str| !label.is_empty() && label.bytes().all(inner);
    text.len() <= 253 && text.split('.').all(label)
}

/// What may be.
enum Shape {
    Text,
    TextOrNull,
    FlagOrNull,
    /// Which Kubernetes writes as a number.
    SecondsOrNull,
    OneOf(&'static [&'static str]),
    ListOf(&'static Shape),
    /// Some of these fields.
    Fields(&'static [(&'static str, Shape)]),
}

use Shape::{Fields, FlagOrNull, ListOf, OneOf, SecondsOrNull, Text, TextOrNull};

static NODE: Shape = Fields(&[
    (
        "metadata",
        Fields(&[
            ("annotations", Fields(&[(INTENT_ANNOTATION, TextOrNull), (PROGRESS_ANNOTATION, TextOrNull)])),
            ("labels", Fields(&[(EXCLUDED_LABEL, TextOrNull)])),
            ("resourceVersion", Text),
        ]),
    ),
    ("spec", Fields(&[("unschedulable", FlagOrNull)])),
]);

static STATUS: Shape = Fields(&[
    ("metadata", Fields(&[("resourceVersion", Text)])),
    ("status", Fields(&[("conditions", ListOf(&CONDITION))])),
]);

static CONDITION: Shape = Fields(&[
    ("type", OneOf(&[CONDITION_DRAINED, CONDITION_DRAINING, CONDITION_PLANNED])),
    ("status", OneOf(&["True", "False", "Unknown"])),
    ("reason", Text),
    ("message", Text),
    ("lastHeartbeatTime", Text),
    ("lastTransitionTime", Text),
]);

static EVICTION: Shape = Fields(&[
    ("apiVersion", OneOf(&["policy/v1"])),
    ("kind", OneOf(&["Eviction"])),
    ("metadata", Fields(&[("name", Text), ("namespace", Text)])),
    ("deleteOptions", Fields(&[("gracePeriodSeconds", SecondsOrNull), ("preconditions", Fields(&[("uid", Text)]))])),
]);

static DELETION: Shape = Fields(&[
    ("dryRun", ListOf(&OneOf(&["All"]))),
    ("gracePeriodSeconds", SecondsOrNull),
    ("preconditions", Fields(&[("uid", Text)])),
]);

impl Shape {
    fn check(&self, path: &Path, value: &Value) -> Result<(), Refusal> {
        let expected = match (self, value) {
            (Text | TextOrNull, Value::String(_)) | (FlagOrNull, Value::Bool(_)) => return Ok(()),
            (TextOrNull | FlagOrNull | SecondsOrNull, Value::Null) => return Ok(()),
            (SecondsOrNull, Value::Number(number)) if number.as_u64().is_some_and(|it| it <= u32::MAX.into()) => {
                return Ok(());
            }
            (OneOf(these), Value::String(text)) if these.contains(&text.as_str()) => return Ok(()),
            (ListOf(shape), Value::Array(values)) => {
                return values.iter().try_for_each(|value| shape.check(path, value));
            }
            (Fields(fields), Value::Object(object)) => {
                return object.iter().try_for_each(|(key, value)| {
                    let path = Path(Some(path), key);
                    match fields.iter().find(|(name, _)| name == key) {
                        Some((_, shape)) => shape.check(&path, value),
                        None => Err(Refusal::Field(path.to_string())),
                    }
                });
            }
            (Text, _) => "a text".to_owned(),
            (TextOrNull, _) => "a text or null".to_owned(),
            (FlagOrNull, _) => "true, false or null".to_owned(),
            (SecondsOrNull, _) => "whole seconds or null".to_owned(),
            (OneOf(these), _) => these.join(", "),
            (ListOf(_), _) => "a list".to_owned(),
            // Null would take away what others have there.
            (Fields(_), _) => "an object".to_owned(),
        };
        Err(Refusal::Value { field: path.to_string(), expected })
    }
}

/// Where in a body, as in `metadata.labels.pool`.
#[derive(Default)]
struct Path<'a>(Option<&'a Path<'a>>, &'a str);

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("it"),
            Some(Path(None, _)) => f.write_str(&cut(self.1)),
            Some(parent) => write!(f, "{parent}.{}", cut(self.1)),
        }
    }
}

/// Somebody's own words, for a log: short, and on one line.
fn cut(text: &str) -> String {
    const LONGEST: usize = 80;
    text.chars().take(LONGEST).map(|char| if char.is_control() { '?' } else { char }).collect()
}

#[cfg(test)]
mod tests;
