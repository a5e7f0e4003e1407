//! Finds room for waiting pods: on nodes that serve, on nodes that were to leave, on nodes that are coming, else on
//! new ones. What buffers ask for comes last.
//!
//! First fit, the most demanding pods first; pods of one shape walk over the places only once together.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::Fleet;
use super::buffers::{Key, Reserve, Stock, Whose};
use super::choice::Demand;
use super::pods::Entry;
use crate::kubernetes::{Node, Pod};
use crate::launch::{Cause, Failing};
use crate::policy::Expander;
use crate::price::Dollars;
use crate::reason::{Obstacle, Reason};
use crate::schedule::{Cluster, NodeId, Place, ShapeId};
use crate::time::Instant;

/// A node and what runs on it.
pub(super) struct Seat<'a> {
    /// With nothing of it taken.
    pub(super) place: Place<'a>,
    pub(super) pods: Vec<&'a Entry>,
    pub(super) origin: Origin<'a>,
}

impl<'a> Seat<'a> {
    pub(super) fn put_into(self, cluster: &mut Cluster<'a>) -> NodeId {
        let node = cluster.add(self.place);
        for pod in self.pods {
            let shape = cluster.shape(&pod.like);
            cluster.put(node, shape);
        }
        node
    }
}

/// Important pods first, then the largest.
pub(super) fn demand(pod: &Pod) -> impl Ord {
    (Reverse(pod.priority), !pod.requests.has_gpu(), Reverse(&pod.requests))
}

#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    /// Takes no pods now; those it has still mean something to others.
    Closed,
    Serving(&'a str),
    /// Being drained, which can be cancelled.
    Leaving(&'a str),
    /// A node of this group, asked for earlier.
    Coming(&'a str),
    /// A node of this group, wanted now: in this zone, or in one of AWS' choice.
    New(RoomName<'a>),
}

/// A group, and the zone where it is asked for instances zone by zone.
pub(super) type RoomName<'a> = (&'a str, Option<&'a str>);

/// How many nodes a group can still make, or can make in one zone.
pub(super) struct Room<'a> {
    pub(super) group: &'a str,
    /// `None`: the zone is left to AWS.
    pub(super) zone: Option<&'a str>,
    pub(super) template: Place<'a>,
    /// `None`: nothing is known of the group. Of all zones together.
    pub(super) more: Option<u32>,
    pub(super) max: u32,
    /// Asked for in all, there or not.
    pub(super) nodes: u32,
    pub(super) priority: i32,
    /// Of an hour of a node.
    pub(super) price: Option<Dollars>,
    /// Why it is not counted on.
    pub(super) failing: Option<Failing>,
}

impl Room<'_> {
    /// Whether asking for more nodes would bring none. (Of instances that did not become nodes the next may.)
    pub(super) fn is_hopeless(&self) -> bool {
        self.failing.as_ref().is_some_and(|failing| failing.cause != Cause::NeverReady)
    }
}

/// What came out.
#[derive(Default)]
pub(super) struct Placement<'a> {
    /// New nodes wanted.
    pub(super) wanted: BTreeMap<RoomName<'a>, Wanted>,
    /// Nodes whose drain is to be cancelled, and why.
    pub(super) kept: BTreeMap<&'a str, Reason>,
    /// What to say about each pod but those that wait for the new nodes: they are told once those are asked for.
    pub(super) explained: Vec<(&'a Entry, Reason)>,
    /// What each buffer has.
    pub(super) stock: BTreeMap<&'a Key, Stock>,
}

/// Who is to get room.
#[derive(Clone, Copy)]
pub(super) enum Claim<'a> {
    /// A pod, and since when it waits.
    Pod(&'a Entry, Instant),
    /// A pod that does not exist, so nothing is done for its sake at the cost of one that does.
    Reserve(Reserve<'a>),
}

impl<'a> Claim<'a> {
    pub(super) fn pod(self) -> &'a Pod {
        match self {
            Self::Pod(pod, _) => &pod.like,
            Self::Reserve(reserve) => reserve.pod,
        }
    }
}

/// Why a group is to make nodes.
pub(super) struct Wanted {
    pub(super) nodes: u32,
    pub(super) by: By,
}

pub(super) enum By {
    /// Buffers, for so many of their pods, and no pod that waits.
    Buffers {
        count: usize,
        first: String,
    },
    Pods {
        count: usize,
        first: String,
        since: Instant,
    },
    /// Ray clusters, for so many of their workers, and no pod that waits.
    Workers {
        count: usize,
        first: String,
    },
}

impl By {
    fn first(claim: Claim) -> Self {
        match claim {
            Claim::Pod(pod, since) => Self::Pods { count: 0, first: pod.full_name(), since },
            Claim::Reserve(reserve) => match reserve.whose {
                Whose::Buffer(_) => Self::Buffers { count: 0, first: reserve.full_name() },
                Whose::Ray { .. } => Self::Workers { count: 0, first: reserve.full_name() },
            },
        }
    }

    fn add(&mut self, claim: Claim) {
        match (self, claim) {
            (Self::Pods { count, since, .. }, Claim::Pod(_, other)) => {
                *count += 1;
                *since = other.min(*since);
            }
            (Self::Buffers { count, .. }, Claim::Reserve(Reserve { whose: Whose::Buffer(_), .. }))
            | (Self::Workers { count, .. }, Claim::Reserve(Reserve { whose: Whose::Ray { .. }, .. })) => *count += 1,
            // It goes along.
            _ => {}
        }
    }

    pub(super) fn because(&self, now: Instant) -> Reason {
        match self {
            Self::Buffers { count, first } => Reason::BufferWanted { count: *count, first: first.clone() },
            Self::Workers { count, first } => Reason::RayWorkersWanted { count: *count, first: first.clone() },
            Self::Pods { count, first, since } => {
                Reason::PodsPending { count: *count, first: first.clone(), longest: now.since(*since) }
            }
        }
    }
}

/// Puts each pod somewhere. `waiting`: pods and since when they wait. Of seats for one pod the first is taken.
pub(super) fn place<'a>(
    waiting: Vec<(&'a Entry, Instant)>,
    reserves: &[Reserve<'a>],
    seats: Vec<Seat<'a>>,
    mut rooms: Vec<Room<'a>>,
    expander: Expander,
) -> Placement<'a> {
    let mut cluster = Cluster::default();
    let mut origins = Vec::new();
    for seat in seats {
        origins.push(seat.origin);
        seat.put_into(&mut cluster);
    }
    let mut placement = Placement::default();
    let waiting = in_order(&mut cluster, waiting);
    let mut claims: Vec<_> = waiting.into_iter().map(|(shape, pod, since)| (shape, Claim::Pod(pod, since))).collect();
    for reserve in reserves {
        let shape = cluster.shape(reserve.pod);
        claims.extend((0..reserve.count).map(|_| (shape, Claim::Reserve(*reserve))));
    }
    let mut demand = Demand::new(&claims, expander);
    let mut search = Search::default();
    for (index, (shape, claim)) in claims.into_iter().enumerate() {
        search.turn_to(shape);
        let node = match search.find(&cluster, |node| !matches!(origins[node], Origin::Closed)) {
            Some(node) => node,
            None => match search.refused.take().map_or_else(|| demand.open(index, &cluster, &mut rooms), Err) {
                Ok((room, template)) => {
                    origins.push(Origin::New(room));
                    let first = || Wanted { nodes: 0, by: By::first(claim) };
                    placement.wanted.entry(room).or_insert_with(first).nodes += 1;
                    cluster.add(template)
                }
                Err(groups) => {
                    placement.refuse(claim, &groups);
                    search.refused = Some(groups);
                    continue;
                }
            },
        };
        search.found(&cluster, node);
        cluster.put(node, shape);
        placement.seat(claim, origins[node]);
    }
    placement
}

impl<'a> Placement<'a> {
    fn refuse(&mut self, claim: Claim<'a>, groups: &[(String, Obstacle)]) {
        match claim {
            Claim::Pod(pod, _) => self.explained.push((pod, Reason::NoGroupFits { groups: groups.to_vec() })),
            Claim::Reserve(reserve) => {
                if let Whose::Buffer(key) = reserve.whose {
                    self.stock.entry(key).or_default().refused.get_or_insert_with(|| groups.to_vec());
                }
            }
        }
    }

    fn seat(&mut self, claim: Claim<'a>, origin: Origin<'a>) {
        match origin {
            Origin::New(room) => _ = self.wanted.get_mut(&room).map(|wanted| wanted.by.add(claim)),
            Origin::Leaving(node) => {
                let first = || match claim {
                    Claim::Pod(pod, _) => Reason::CapacityNeeded { pod: pod.full_name() },
                    Claim::Reserve(reserve) => reserve.wanted(0),
                };
                let because = self.kept.entry(node).or_insert_with(first);
                match (because, claim) {
                    (Reason::BufferWanted { count, .. }, Claim::Reserve(Reserve { whose: Whose::Buffer(_), .. }))
                    | (
                        Reason::RayWorkersWanted { count, .. },
                        Claim::Reserve(Reserve { whose: Whose::Ray { .. }, .. }),
                    ) => *count += 1,
                    _ => {}
                }
            }
            Origin::Closed | Origin::Coming(_) | Origin::Serving(_) => {}
        }
        match claim {
            Claim::Reserve(reserve) => {
                if let Whose::Buffer(key) = reserve.whose {
                    self.stock.entry(key).or_default().there += u32::from(matches!(origin, Origin::Serving(_)));
                }
            }
            Claim::Pod(pod, _) => {
                let because = match origin {
                    Origin::Serving(node) | Origin::Leaving(node) => Reason::SchedulerToPlace { node: node.to_owned() },
                    Origin::Coming(group) => Reason::NodeComing { group: group.to_owned() },
                    Origin::Closed | Origin::New(_) => return,
                };
                self.explained.push((pod, because));
            }
        }
    }
}

/// Looks for nodes for pods of one shape, one after the other.
#[derive(Default)]
pub(super) struct Search {
    shape: Option<ShapeId>,
    /// Where to begin. If room only shrinks, no node before the last one's takes the next pod; else those come last.
    start: NodeId,
    /// Why there is no node for pods of this shape, nor one to be made.
    pub(super) refused: Option<Vec<(String, Obstacle)>>,
}

impl Search {
    pub(super) fn turn_to(&mut self, shape: ShapeId) {
        if self.shape != Some(shape) {
            *self = Self { shape: Some(shape), ..Self::default() };
        }
    }

    pub(super) fn find(&self, cluster: &Cluster, open: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let shape = self.shape.filter(|_| self.refused.is_none())?;
        let last = if cluster.only_shrinks_for(shape) { 0 } else { self.start.min(cluster.nodes()) };
        let takes = |&node: &NodeId| open(node) && cluster.admits(node, shape).is_ok();
        (self.start..cluster.nodes()).chain(0..last).find(takes)
    }

    /// Pods that are spread go round: the node that has just got one is the least likely to get the next.
    pub(super) fn found(&mut self, cluster: &Cluster, node: NodeId) {
        self.start = node + usize::from(self.shape.is_some_and(|shape| cluster.spreads(shape)));
    }
}

/// By [`demand`]; pods of one shape beside each other; names last, so that the order never
/// depends on chance.
pub(super) fn in_order<'a>(
    cluster: &mut Cluster<'a>,
    waiting: Vec<(&'a Entry, Instant)>,
) -> Vec<(ShapeId, &'a Entry, Instant)> {
    let mut shapes: HashMap<ShapeId, String> = HashMap::new();
    let mut pods = Vec::new();
    for (pod, since) in waiting {
        let shape = cluster.shape(&pod.like);
        shapes.entry(shape).or_insert_with(|| selection(&pod.like));
        pods.push((shape, pod, since));
    }
    let key = |&(shape, pod, _): &(ShapeId, &'a Entry, Instant)| {
        (demand(&pod.like), &shapes[&shape], &pod.like.namespace, &pod.name)
    };
    pods.sort_by(|a, b| key(a).cmp(&key(b)));
    pods
}

/// The same for all pods of a shape; that of another is another, but for what they ask for.
fn selection(pod: &Pod) -> String {
    let Pod { tolerations, node_selector, node_affinity, labels, host_ports, needs, .. } = pod;
    let others = (&pod.namespace, labels, host_ports, &pod.pod_affinity, &pod.pod_anti_affinity, &pod.spread, needs);
    format!("{tolerations:?}{node_selector:?}{node_affinity:?}{others:?}")
}

impl Fleet {
    pub(super) fn seat<'a>(&'a self, member: &'a super::Member, origin: Origin<'a>) -> Seat<'a> {
        let Node { name, labels, taints, allocatable, .. } = &member.node;
        let place = Place { name: Some(name), labels, taints, free: allocatable.clone(), zones: &[] };
        Seat { place, pods: self.pods.on(name).filter(|pod| !pod.like.finished).collect(), origin }
    }

    /// The node as a place, with what is left on it.
    pub(super) fn place_on<'a>(&'a self, member: &'a super::Member) -> Place<'a> {
        let Seat { mut place, pods, .. } = self.seat(member, Origin::Closed);
        pods.iter().for_each(|pod| place.free.subtract(&pod.like.requests));
        place
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::fleet::pods::entries;
    use crate::kubernetes::{Operator, PodTerm, Requirement, Spread};
    use crate::resources::Resources;
    use crate::schedule::Misfit;

    fn waiting(count: usize, with: impl Fn(Vec<Requirement>) -> Pod) -> Vec<Pod> {
        let app = |name: &str| Requirement { key: "app".into(), operator: Operator::In, values: vec![name.into()] };
        let pod = |index: usize| Pod {
            uid: index.to_string(),
            name: format!("web-{index}"),
            namespace: "default".into(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            requests: Resources::from_texts([("cpu", "100m"), ("pods", "1")]).unwrap(),
            ..with(vec![app("web")])
        };
        (0..count).map(pod).collect()
    }

    fn room<'a>(group: &'a str, template: Place<'a>, max: u32) -> Room<'a> {
        Room { group, zone: None, template, more: Some(max), max, nodes: 0, priority: 0, price: None, failing: None }
    }

    /// How many nodes are wanted for pods that would all fit on one, if some are coming.
    fn check(pods: &[Pod], coming: u32, wanted: Option<u32>) {
        let labels = BTreeMap::new();
        let free = Resources::from_texts([("cpu", "4"), ("pods", "20")]).unwrap();
        let template = Place { name: None, labels: &labels, taints: &[], free, zones: &[] };
        let seat = || Seat { place: template.clone(), pods: vec![], origin: Origin::Coming("cpu") };
        let coming = (0..coming).map(|_| seat()).collect();
        let now = Instant::from_millis(0);
        let pods = entries(pods);
        let waiting = pods.iter().map(|pod| (pod, now)).collect();
        let placement = place(waiting, &[], coming, vec![room("cpu", template.clone(), 10)], Expander::default());
        assert_eq!(
            placement.wanted.get(&("cpu", None)).map(|wanted| wanted.nodes),
            wanted,
            "{:?}",
            placement.explained
        );
    }

    fn alone(selector: Vec<Requirement>) -> Pod {
        let namespaces = Some(vec!["default".to_owned()]);
        let term = PodTerm { namespaces, selector: Some(selector), topology_key: "kubernetes.io/hostname".into() };
        Pod { pod_anti_affinity: vec![term], ..Pod::default() }
    }

    #[test]
    fn pods_that_must_stand_alone_get_a_node_each() {
        check(&waiting(5, |_| Pod::default()), 0, Some(1));
        check(&waiting(5, alone), 0, Some(5));
        check(&waiting(5, alone), 2, Some(3));
        check(&waiting(5, alone), 5, None);
    }

    #[test]
    fn pods_are_spread_over_nodes_that_are_only_coming() {
        let even = |selector| Spread {
            max_skew: 1,
            min_domains: 1,
            selector: Some(selector),
            topology_key: "kubernetes.io/hostname".into(),
            honors_affinity: true,
            honors_taints: false,
        };
        let spread = |selector| Pod { spread: vec![even(selector)], ..Pod::default() };
        check(&waiting(6, spread), 3, None);
        // One node is no unevenness.
        check(&waiting(6, spread), 1, None);
    }

    #[test]
    fn a_node_that_takes_no_pods_still_has_those_that_others_keep_away_from() {
        let zone = |name: &str| BTreeMap::from([("zone".to_owned(), name.to_owned())]);
        let (labels, template) = (zone("a"), zone("a"));
        let far = |selector| {
            let Pod { pod_anti_affinity, .. } = alone(selector);
            let terms = pod_anti_affinity.into_iter().map(|term| PodTerm { topology_key: "zone".into(), ..term });
            Pod { pod_anti_affinity: terms.collect(), ..Pod::default() }
        };
        let pods = entries(&waiting(2, far));
        let free = || Resources::from_texts([("cpu", "4"), ("pods", "20")]).unwrap();
        let seat = Seat {
            place: Place { name: Some("cordoned"), labels: &labels, taints: &[], free: free(), zones: &[] },
            pods: vec![&pods[0]],
            origin: Origin::Closed,
        };
        let template = Place { name: None, labels: &template, taints: &[], free: free(), zones: &[] };
        let waiting = vec![(&pods[1], Instant::from_millis(0))];
        let placement = place(waiting, &[], vec![seat], vec![room("cpu", template, 1)], Expander::default());
        let [(_, Reason::NoGroupFits { groups })] = placement.explained.as_slice() else {
            panic!("{:?}", placement.explained)
        };
        let misfit = Misfit::PodAntiAffinity { key: "zone".into() };
        assert_eq!(groups, slice::from_ref(&("cpu".to_owned(), Obstacle::Misfit(misfit))));
    }
}
