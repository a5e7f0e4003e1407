//! What Ray's GCS says of its cluster, and the way from its messages to the core's [`Reading`]. What no GCS says is
//! refused here.

use ebb_core::ray::{Amounts, DrainReason, Drained, Gang, Launches, Node, NodeState, Reading, Togetherness};
use ebb_core::time::Instant;

use crate::Invalid;

/// Generated from `ray/autoscaler/autoscaler.proto`.
#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod autoscaler {
    tonic::include_proto!("ray.rpc.autoscaler");
}

use autoscaler as messages;

impl TryFrom<messages::GetClusterStatusReply> for Reading {
    type Error = Invalid;

    fn try_from(reply: messages::GetClusterStatusReply) -> Result<Self, Invalid> {
        let state = reply.cluster_resource_state.ok_or(Invalid("a status without the cluster's state"))?;
        let mut reading = Self { session: state.cluster_session_name, ..Self::default() };
        for message in state.node_states {
            let (id, node) = node(message)?;
            reading.nodes.insert(id, node);
        }
        for message in state.pending_resource_requests {
            let count = count(message.count)?;
            match shape(&message.request.ok_or(Invalid("a count of no request"))?)? {
                Some(shape) => add(reading.pending.entry(shape).or_default(), count),
                None => add(&mut reading.not_modelled, count),
            }
        }
        for message in state.pending_gang_resource_requests {
            match gang(message)? {
                // One that is placed is still there, without its requests.
                Some(gang) if gang.bundles.is_empty() => {}
                Some(gang) => reading.gangs.push(gang),
                None => add(&mut reading.not_modelled, 1),
            }
        }
        for message in
            state.cluster_resource_constraints.into_iter().flat_map(|constraint| constraint.resource_requests)
        {
            let count = count(message.count)?;
            match shape(&message.request.ok_or(Invalid("a count of no request"))?)? {
                Some(shape) => add(reading.floor.entry(shape).or_default(), count),
                None => add(&mut reading.not_modelled, count),
            }
        }
        // They come in any order.
        reading.gangs.sort();
        Ok(reading)
    }
}

/// `node`: its id as a [`Reading`] has it.
pub fn drain_request(
    node: &str,
    reason: DrainReason,
    message: &str,
    deadline: Instant,
) -> Result<messages::DrainNodeRequest, Invalid> {
    let reason = match reason {
        DrainReason::IdleTermination => messages::DrainNodeReason::IdleTermination,
        DrainReason::Preemption => messages::DrainNodeReason::Preemption,
    };
    Ok(messages::DrainNodeRequest {
        node_id: bytes(node).ok_or(Invalid("a node's id that is none"))?,
        reason: reason.into(),
        reason_message: message.to_owned(),
        deadline_timestamp_ms: i64::try_from(deadline.as_millis()).map_err(|_| Invalid("a deadline that is none"))?,
    })
}

/// `version`: above that of the last, or it is not heard.
pub fn autoscaling_state(version: u64, launches: &Launches) -> messages::AutoscalingState {
    // `ray status` counts requests, whatever their count.
    let asked_for = launches.asked_for.iter().flat_map(|(group, count)| {
        let request = messages::PendingInstanceRequest {
            ray_node_type_name: group.clone(),
            count: 1,
            ..messages::PendingInstanceRequest::default()
        };
        std::iter::repeat_n(request, *count as usize)
    });
    let pods = launches.pods.iter().map(|pod| messages::PendingInstance {
        instance_id: pod.pod.clone(),
        ray_node_type_name: pod.group.clone(),
        details: if pod.placed { "its pod starts" } else { "its pod waits for a node" }.into(),
        ..messages::PendingInstance::default()
    });
    messages::AutoscalingState {
        autoscaler_state_version: i64::try_from(version).unwrap_or(i64::MAX),
        pending_instance_requests: asked_for.collect(),
        pending_instances: pods.collect(),
        ..messages::AutoscalingState::default()
    }
}

pub fn drained(reply: messages::DrainNodeReply) -> Drained {
    if reply.is_accepted { Drained::Accepted } else { Drained::Refused(reply.rejection_reason_message) }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes().chunks(2).map(|pair| {
        let (2, Ok(pair)) = (pair.len(), std::str::from_utf8(pair)) else { return None };
        u8::from_str_radix(pair, 16).ok()
    });
    digits.collect::<Option<Vec<_>>>().filter(|bytes| !bytes.is_empty())
}

fn node(message: messages::NodeState) -> Result<(String, Node), Invalid> {
    if message.node_id.is_empty() {
        return Err(Invalid("a node without id"));
    }
    let state = match messages::NodeStatus::try_from(message.status) {
        Ok(messages::NodeStatus::Running) => NodeState::Running,
        Ok(messages::NodeStatus::Idle) => NodeState::Idle {
            millis: u64::try_from(message.idle_duration_ms).map_err(|_| Invalid("idle for less than nothing"))?,
        },
        Ok(messages::NodeStatus::Draining) => NodeState::Draining,
        Ok(messages::NodeStatus::Dead) => NodeState::Dead,
        Ok(messages::NodeStatus::Unspecified) | Err(_) => return Err(Invalid("a node of unknown state")),
    };
    let id = hex(&message.node_id);
    // They come in any order, and those of an idle node are old.
    let mut activity = message.node_activity;
    activity.retain(|_| state == NodeState::Running);
    activity.sort();
    let node = Node {
        ip: message.node_ip_address,
        instance: message.instance_id,
        group: message.ray_node_type_name,
        state,
        available: amounts(&message.available_resources)?,
        total: amounts(&message.total_resources)?,
        activity,
    };
    Ok((id, node))
}

fn gang(message: messages::GangResourceRequest) -> Result<Option<Gang>, Invalid> {
    let requests = match message.bundle_selectors.into_iter().next() {
        Some(first) if message.requests.is_empty() => first.resource_requests,
        _ => message.requests,
    };
    let constraints = requests.iter().flat_map(|request| &request.placement_constraints);
    let togetherness = constraints.fold(Togetherness::Any, |so_far, constraint| {
        match (&constraint.affinity, &constraint.anti_affinity) {
            (Some(_), _) => Togetherness::OneWorker,
            (None, Some(_)) => Togetherness::Apart,
            (None, None) => so_far,
        }
    });
    let bundles: Option<Vec<_>> = requests.iter().map(shape).collect::<Result<_, _>>()?;
    Ok(bundles.map(|bundles| Gang { bundles, togetherness }))
}

/// `None`: it asks for labels of the node as well.
fn shape(request: &messages::ResourceRequest) -> Result<Option<Amounts>, Invalid> {
    let selects = request.label_selectors.iter().any(|selector| !selector.label_constraints.is_empty());
    Ok(if selects { None } else { Some(amounts(&request.resources_bundle)?) })
}

fn count(raw: i64) -> Result<u32, Invalid> {
    u32::try_from(raw).map_err(|_| Invalid("a count that is none"))
}

/// Counts come from outside, and more than can be counted is no more than that.
fn add(sum: &mut u32, count: u32) {
    *sum = sum.saturating_add(count);
}

fn amounts<'a>(map: impl IntoIterator<Item = (&'a String, &'a f64)>) -> Result<Amounts, Invalid> {
    let mut amounts = Amounts::default();
    for (name, amount) in map {
        if !amounts.set(name, *amount) {
            return Err(Invalid("an amount that is none"));
        }
    }
    Ok(amounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use messages::{
        Affinity, ClusterResourceConstraint, ClusterResourceState, GangResourceRequest, GetClusterStatusReply,
        LabelConstraint, LabelSelector, PlacementConstraint, ResourceRequest, ResourceRequestByCount,
    };

    fn request(cpu: f64) -> ResourceRequest {
        let resources_bundle = [("CPU".to_owned(), cpu)].into();
        // A plain task has an empty selector.
        ResourceRequest {
            resources_bundle,
            label_selectors: vec![LabelSelector::default()],
            ..ResourceRequest::default()
        }
    }

    fn state() -> ClusterResourceState {
        let node = messages::NodeState {
            node_id: vec![0x0a, 0xff],
            ray_node_type_name: "cpu".into(),
            total_resources: [("CPU".to_owned(), 2.0)].into(),
            status: messages::NodeStatus::Idle.into(),
            idle_duration_ms: 7,
            node_activity: vec!["Busy workers on node.".into(), "A".into()],
            ..messages::NodeState::default()
        };
        let apart = PlacementConstraint { anti_affinity: Some(Affinity::default()), affinity: None };
        let apart = ResourceRequest { placement_constraints: vec![apart], ..request(1.0) };
        let by_count = |cpu, count| ResourceRequestByCount { request: Some(request(cpu)), count };
        ClusterResourceState {
            node_states: vec![node],
            pending_resource_requests: vec![by_count(0.5, 3), by_count(0.5, 1)],
            pending_gang_resource_requests: vec![
                GangResourceRequest { requests: vec![apart.clone(), apart], ..GangResourceRequest::default() },
                GangResourceRequest::default(),
            ],
            cluster_resource_constraints: vec![ClusterResourceConstraint { resource_requests: vec![by_count(4.0, 2)] }],
            cluster_session_name: "s".into(),
        }
    }

    fn read(state: ClusterResourceState) -> Result<Reading, Invalid> {
        GetClusterStatusReply { cluster_resource_state: Some(state), autoscaling_state: None }.try_into()
    }

    fn cpu(amount: f64) -> Amounts {
        let mut amounts = Amounts::default();
        assert!(amounts.set("CPU", amount));
        amounts
    }

    #[test]
    fn a_status_is_read_and_what_is_placed_already_is_left_out() {
        let reading = read(state()).unwrap();
        assert_eq!(reading.nodes["0aff"].state, NodeState::Idle { millis: 7 });
        assert_eq!((reading.nodes["0aff"].group.as_str(), &reading.nodes["0aff"].total), ("cpu", &cpu(2.0)));
        assert_eq!(reading.nodes["0aff"].activity, [""; 0], "that of an idle node is old");
        assert_eq!(reading.pending, [(cpu(0.5), 4)].into());
        let gang = Gang { bundles: vec![cpu(1.0), cpu(1.0)], togetherness: Togetherness::Apart };
        assert_eq!(reading.gangs, [gang]);
        assert_eq!((reading.floor, reading.not_modelled), ([(cpu(4.0), 2)].into(), 0));
    }

    #[test]
    fn why_a_node_is_busy_is_read_in_one_order() {
        let mut state = state();
        state.node_states[0].status = messages::NodeStatus::Running.into();
        assert_eq!(read(state).unwrap().nodes["0aff"].activity, ["A", "Busy workers on node."]);
    }

    #[test]
    fn what_asks_for_labels_is_counted_and_not_planned_for() {
        let mut state = state();
        let request = state.pending_resource_requests[0].request.as_mut().unwrap();
        request.label_selectors[0].label_constraints.push(LabelConstraint {});
        let reading = read(state).unwrap();
        assert_eq!((reading.pending, reading.not_modelled), ([(cpu(0.5), 1)].into(), 3));
    }

    #[test]
    fn counts_do_not_run_over() {
        let mut state = state();
        state.pending_resource_requests.iter_mut().for_each(|request| request.count = u32::MAX.into());
        assert_eq!(read(state).unwrap().pending, [(cpu(0.5), u32::MAX)].into());
    }

    #[test]
    fn nonsense_is_refused() {
        let check = |change: fn(&mut ClusterResourceState)| {
            let mut state = state();
            change(&mut state);
            assert!(read(state).is_err());
        };
        check(|state| state.node_states[0].status = 0);
        check(|state| state.node_states[0].status = 99);
        check(|state| state.node_states[0].node_id.clear());
        check(|state| state.node_states[0].idle_duration_ms = -1);
        check(|state| state.pending_resource_requests[0].count = -1);
        check(|state| state.pending_resource_requests[0].request = None);
        for amount in [-1.0, f64::NAN, f64::INFINITY] {
            let mut state = state();
            state.node_states[0].total_resources.insert("CPU".into(), amount);
            assert!(read(state).is_err(), "{amount}");
        }
        assert!(Reading::try_from(GetClusterStatusReply::default()).is_err());
    }
}
