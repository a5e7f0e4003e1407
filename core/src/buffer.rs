//! Room that is kept free for pods to come: CapacityBuffers of the API group autoscaling.x-k8s.io.
//!
//! Here: how much one asks for, and what its status says. Where its room is, the fleet finds out.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};

use crate::kubernetes::Pod;
use crate::reason::Obstacle;
use crate::resources::Resources;
use crate::units::InvalidQuantity;

/// Pods that one buffer may keep room for. Each is placed at every look; more is a slip of the keyboard.
pub const MOST: u32 = 10_000;

/// A buffer, with what it refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Buffer {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub generation: i64,
    pub replicas: Option<u32>,
    /// Of what its source runs.
    pub percentage: Option<u32>,
    /// The most that its pods may ask for together; `cpu` in thousandths. Unlike in [`Resources`], nothing is not the
    /// same as not named.
    pub limits: Option<BTreeMap<String, u64>>,
    pub source: Result<Source, Problem>,
}

/// What a buffer is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// One of its pods, without name and node.
    pub pod: Pod,
    /// How many of them run by wish of a workload; `None`: it is a mere template.
    pub replicas: Option<u32>,
    pub template: Option<Template>,
}

/// A PodTemplate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    pub name: String,
    pub generation: i64,
}

/// What became of a buffer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    Applied(Box<Buffer>),
    Deleted { namespace: String, name: String },
}

/// Why no room is kept for a buffer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Problem {
    /// What it refers to may not be read.
    Denied {
        kind: String,
        name: String,
    },
    /// None of the limited resources is asked for by its pods.
    LimitsOfNothing,
    /// Nothing says how many.
    NoCount,
    /// Not exactly one object is referred to.
    NoReference,
    NotFound {
        kind: String,
        name: String,
    },
    /// A limit that is no amount.
    Quantity {
        text: String,
    },
    TooMany {
        count: u32,
    },
    /// The kind of the workload that it refers to.
    Unsupported {
        kind: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied { kind, name } => write!(f, "Ebb may not read the {kind} {name}"),
            Self::LimitsOfNothing => f.write_str("its pods request none of the resources that `limits` names"),
            Self::NoCount => f.write_str("give `replicas` or `limits`, or with `scalableRef` a `percentage`"),
            Self::NoReference => f.write_str("give either `podTemplateRef` or `scalableRef`"),
            Self::NotFound { kind, name } => write!(f, "there is no {kind} {name} in its namespace"),
            Self::Quantity { text } => write!(f, "{text} in `limits`"),
            Self::TooMany { count } => {
                write!(f, "room for {count} pods is more than the {MOST} that one buffer may keep")
            }
            Self::Unsupported { kind } => write!(
                f,
                "a {kind} tells no pod template; a Deployment, ReplicaSet, StatefulSet, Job or ReplicationController does, \
                 and so does `podTemplateRef`"
            ),
        }
    }
}

impl Buffer {
    /// A pod of it, and for how many room is to be kept: of the ways to say so the one that says the least.
    pub fn wish(&self) -> Result<(&Pod, u32), Problem> {
        let source = self.source.as_ref().map_err(Clone::clone)?;
        // In whole pods, and for a workload that runs at all at least one.
        let percentage = self.percentage.zip(source.replicas).map(|(percentage, replicas)| {
            let part = (u64::from(percentage) * u64::from(replicas)).div_ceil(100);
            u32::try_from(part).unwrap_or(u32::MAX)
        });
        let limits = self.limits.as_ref().map(|limits| within(&source.pod.requests, limits)).transpose()?;
        let count = [self.replicas, percentage, limits].into_iter().flatten().min().ok_or(Problem::NoCount)?;
        if count > MOST {
            return Err(Problem::TooMany { count });
        }
        Ok((&source.pod, count))
    }
}

/// How many such pods fit into the limits.
fn within(requests: &Resources, limits: &BTreeMap<String, u64>) -> Result<u32, Problem> {
    let times = limits.iter().filter_map(|(name, limit)| limit.checked_div(requests.amount(name)));
    let times = times.min().ok_or(Problem::LimitsOfNothing)?;
    Ok(u32::try_from(times).unwrap_or(u32::MAX))
}

/// Reads limits as people write them.
pub fn limits(list: &BTreeMap<String, Quantity>) -> Result<BTreeMap<String, u64>, Problem> {
    let amount = |(name, quantity): (&String, &Quantity)| {
        let resources = Resources::from_texts([(name.as_str(), quantity.0.as_str())])?;
        Ok((name.clone(), resources.amount(name)))
    };
    list.iter()
        .map(amount)
        .collect::<Result<_, InvalidQuantity>>()
        .map_err(|it| Problem::Quantity { text: it.to_string() })
}

/// What people are told of a buffer, on the object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Of the buffer that this is about.
    pub generation: i64,
    pub template: Option<Template>,
    /// Pods that room is to be kept for; `None`: not known.
    pub replicas: Option<u32>,
    pub room: Room,
}

/// Whether a buffer's room is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Room {
    /// For all of its pods, on nodes that take pods.
    There,
    /// Nodes for what is missing are asked for.
    Coming {
        there: u32,
    },
    /// No group can make nodes for what is missing; one entry per group.
    Refused {
        there: u32,
        groups: Vec<(String, Obstacle)>,
    },
    Unknown(Problem),
}

/// As the API's `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub name: &'static str,
    pub holds: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Status {
    /// Whether it is known what to keep room for; whether that is seen to, and how far it has come.
    pub fn conditions(&self) -> [Condition; 2] {
        let all = self.replicas.unwrap_or(0);
        let (holds, reason, message) = match &self.room {
            Room::There => (true, "RoomThere", format!("there is room for all {all} pods")),
            Room::Coming { there } => (
                true,
                "NodesComing",
                format!("there is room for {there} of {all} pods, and nodes are coming for the rest"),
            ),
            Room::Refused { there, groups } => {
                let causes: Vec<_> = groups.iter().map(|(group, obstacle)| format!("{group}: {obstacle}")).collect();
                let causes = if causes.is_empty() { "no group is configured".to_owned() } else { causes.join("; ") };
                let message = format!(
                    "there is room for {there} of {all} pods, and no group can make a node for the next: {causes}"
                );
                (false, "NoGroupFits", message)
            }
            Room::Unknown(_) => (false, "NotReady", "it is not known what to keep room for".to_owned()),
        };
        // The reasons that Cluster Autoscaler gives.
        let ready = match &self.room {
            Room::Unknown(problem) => (false, "error", problem.to_string()),
            _ => (true, "AttributesSetSuccessfully", "ready".to_owned()),
        };
        let condition = |name, (holds, reason, message)| Condition { name, holds, reason, message };
        [condition("ReadyForProvisioning", ready), condition("Provisioning", (holds, reason, message))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(replicas: Option<u32>, percentage: Option<u32>, limits: &[(&str, &str)], runs: Option<u32>) -> Buffer {
        let requests = Resources::from_texts([("cpu", "500m"), ("memory", "1Gi"), ("pods", "1")]).unwrap();
        let list = limits.iter().map(|(name, text)| ((*name).to_owned(), Quantity((*text).to_owned()))).collect();
        Buffer {
            namespace: "ns".into(),
            name: "b".into(),
            uid: "u".into(),
            generation: 1,
            replicas,
            percentage,
            limits: (!limits.is_empty()).then(|| super::limits(&list).unwrap()),
            source: Ok(Source { pod: Pod { requests, ..Pod::default() }, replicas: runs, template: None }),
        }
    }

    #[test]
    fn of_several_ways_to_say_how_many_the_least_holds() {
        let check = |buffer: Buffer, expected: Result<u32, Problem>| {
            assert_eq!(buffer.wish().map(|(_, count)| count), expected, "{buffer:?}");
        };
        check(buffer(Some(5), None, &[], None), Ok(5));
        check(buffer(Some(0), None, &[], None), Ok(0));
        check(buffer(None, Some(20), &[], Some(10)), Ok(2));
        check(buffer(None, Some(5), &[], Some(10)), Ok(1));
        check(buffer(None, Some(5), &[], Some(0)), Ok(0));
        check(buffer(None, Some(150), &[], Some(10)), Ok(15));
        check(buffer(Some(5), Some(20), &[], Some(10)), Ok(2));
        // A template runs nothing that a percentage could be of.
        check(buffer(Some(5), Some(20), &[], None), Ok(5));
        check(buffer(None, Some(20), &[], None), Err(Problem::NoCount));
        check(buffer(None, None, &[], Some(10)), Err(Problem::NoCount));
        check(buffer(None, None, &[("cpu", "2")], None), Ok(4));
        check(buffer(None, None, &[("cpu", "2"), ("memory", "3Gi")], None), Ok(3));
        check(buffer(Some(2), None, &[("cpu", "2")], None), Ok(2));
        check(buffer(Some(9), None, &[("cpu", "2"), ("nvidia.com/gpu", "1")], None), Ok(4));
        check(buffer(Some(9), None, &[("cpu", "0")], None), Ok(0));
        check(buffer(Some(9), None, &[("nvidia.com/gpu", "1")], None), Err(Problem::LimitsOfNothing));
        check(buffer(Some(MOST + 1), None, &[], None), Err(Problem::TooMany { count: MOST + 1 }));
        let list = BTreeMap::from([("cpu".to_owned(), Quantity("two".into()))]);
        assert!(matches!(limits(&list), Err(Problem::Quantity { .. })));
    }

    #[test]
    fn a_status_tells_how_far_it_has_come_and_what_is_in_the_way() {
        let check = |room: Room, expected: [(bool, &str); 2], words: &str| {
            let status = Status { generation: 1, template: None, replicas: Some(3), room };
            let conditions = status.conditions();
            assert_eq!(conditions.each_ref().map(|it| (it.holds, it.reason)), expected);
            assert!(conditions.iter().any(|it| it.message.contains(words)), "{conditions:?}");
        };
        let ready = (true, "AttributesSetSuccessfully");
        check(Room::There, [ready, (true, "RoomThere")], "all 3 pods");
        check(Room::Coming { there: 1 }, [ready, (true, "NodesComing")], "1 of 3 pods");
        let groups = vec![("cpu".to_owned(), Obstacle::Maximum(2))];
        check(Room::Refused { there: 1, groups }, [ready, (false, "NoGroupFits")], "cpu: at its maximum of 2");
        check(Room::Unknown(Problem::NoCount), [(false, "error"), (false, "NotReady")], "replicas");
    }
}
