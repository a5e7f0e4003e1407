//! Finds room for waiting pods: on nodes that serve, on nodes that were to leave, on nodes that are coming, else on
//! new ones.
//! First fit, the most demanding pods first; pods of one shape walk over the places only once together.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::Fleet;
use crate::kubernetes::Pod;
use crate::reason::{Obstacle, Reason};
use crate::resources::Resources;
use crate::schedule::Place;
use crate::time::Instant;

/// A place pods can be put into.
struct Bin<'a> {
    place: Place<'a>,
    origin: Origin<'a>,
}

#[derive(Clone, Copy)]
enum Origin<'a> {
    Serving(&'a str),
    /// Being drained, which can be cancelled.
    Leaving(&'a str),
    /// A node of this group, asked for earlier.
    Coming(&'a str),
    /// A node of this group, wanted now.
    New(&'a str),
}

/// How many nodes a group can still make.
pub(super) struct Room<'a> {
    pub(super) group: &'a str,
    pub(super) template: Place<'a>,
    /// Asked for and not there yet.
    pub(super) coming: u32,
    /// `None`: nothing is known of the group.
    pub(super) more: Option<u32>,
    pub(super) max: u32,
}

/// What came out.
#[derive(Default)]
pub(super) struct Placement<'a> {
    /// New nodes wanted, by group.
    pub(super) wanted: BTreeMap<&'a str, Wanted>,
    /// Nodes whose drain is to be cancelled, and the first pod that wants it.
    pub(super) kept: BTreeMap<&'a str, String>,
    /// What to say about each pod but those that wait for the new nodes: they are told once those are asked for.
    pub(super) explained: Vec<(&'a Pod, Reason)>,
}

/// Why a group is to make nodes.
pub(super) struct Wanted {
    pub(super) nodes: u32,
    pub(super) pods: usize,
    pub(super) first: String,
    pub(super) since: Instant,
}

/// Puts each pod somewhere. `waiting`: pods and since when they wait.
pub(super) fn place<'a>(
    mut waiting: Vec<(&'a Pod, Instant)>,
    serving: Vec<Place<'a>>,
    leaving: Vec<Place<'a>>,
    mut rooms: Vec<Room<'a>>,
) -> Placement<'a> {
    let bin = |place: Place<'a>, origin: fn(&'a str) -> Origin<'a>| Some(Bin { origin: origin(place.name?), place });
    let mut bins: Vec<Bin<'a>> = serving.into_iter().filter_map(|place| bin(place, Origin::Serving)).collect();
    bins.extend(leaving.into_iter().filter_map(|place| bin(place, Origin::Leaving)));
    for room in &rooms {
        let coming = Bin { place: room.template.clone(), origin: Origin::Coming(room.group) };
        bins.extend(
            std::iter::repeat_with(|| Bin { place: coming.place.clone(), origin: coming.origin })
                .take(room.coming as usize),
        );
    }
    waiting.sort_by_cached_key(|(pod, _)| order(pod));

    let mut placement = Placement::default();
    // Where the last pod of the same shape found room: free room only shrinks, so nothing before that fits this one.
    let mut start = 0;
    let mut previous: Option<&Pod> = None;
    for (pod, since) in waiting {
        if !previous.is_some_and(|previous| same_shape(previous, pod)) {
            start = 0;
        }
        previous = Some(pod);
        let found = (start..bins.len()).find(|&index| bins[index].place.admits(pod).is_ok());
        start = found.unwrap_or(bins.len());
        if found.is_none() {
            match open(&mut rooms, pod) {
                Ok(bin) => bins.push(bin),
                Err(groups) => {
                    placement.explained.push((pod, Reason::NoGroupFits { groups }));
                    continue;
                }
            }
            if let Origin::New(group) = bins[start].origin {
                let wanted = placement.wanted.entry(group).or_insert_with(|| Wanted {
                    nodes: 0,
                    pods: 0,
                    first: pod.full_name(),
                    since,
                });
                wanted.nodes += 1;
            }
        }
        let bin = &mut bins[start];
        bin.place.free.subtract(&pod.requests);
        let because = match bin.origin {
            Origin::Serving(node) => Reason::SchedulerToPlace { node: node.to_owned() },
            Origin::Leaving(node) => {
                placement.kept.entry(node).or_insert_with(|| pod.full_name());
                Reason::SchedulerToPlace { node: node.to_owned() }
            }
            Origin::Coming(group) => Reason::NodeComing { group: group.to_owned() },
            Origin::New(group) => {
                if let Some(wanted) = placement.wanted.get_mut(group) {
                    wanted.pods += 1;
                    wanted.since = wanted.since.min(since);
                }
                continue;
            }
        };
        placement.explained.push((pod, because));
    }
    placement
}

/// Important pods first, then the largest; pods of one shape beside each other; names last, so that the order never
/// depends on chance.
fn order(pod: &Pod) -> (Reverse<i32>, bool, Reverse<&Resources>, String, &str, &str) {
    let selection = format!("{:?}{:?}{:?}", pod.tolerations, pod.node_selector, pod.node_affinity);
    (Reverse(pod.priority), !pod.requests.has_gpu(), Reverse(&pod.requests), selection, &pod.namespace, &pod.name)
}

fn same_shape(a: &Pod, b: &Pod) -> bool {
    a.requests == b.requests
        && a.tolerations == b.tolerations
        && a.node_selector == b.node_selector
        && a.node_affinity == b.node_affinity
}

/// A new node for the pod, from the group that suits it best: no GPU for a pod that asks for none, if that can be
/// avoided, and then the smallest node.
fn open<'a>(rooms: &mut [Room<'a>], pod: &Pod) -> Result<Bin<'a>, Vec<(String, Obstacle)>> {
    let obstacle = |room: &Room| match room.more {
        None => Some(Obstacle::Unobserved),
        Some(_) if room.template.admits(pod).is_err() => room.template.admits(pod).err().map(Obstacle::Misfit),
        Some(0) => Some(Obstacle::Maximum(room.max)),
        Some(_) => None,
    };
    let wastes_gpu = |room: &Room| room.template.free.has_gpu() && !pod.requests.has_gpu();
    let fullness = |room: &Room| pod.requests.dominant_permille(&room.template.free);
    let best = rooms
        .iter_mut()
        .filter(|room| obstacle(room).is_none())
        .min_by_key(|room| (wastes_gpu(room), Reverse(fullness(room)), room.group));
    match best {
        Some(room) => {
            room.more = room.more.map(|more| more - 1);
            Ok(Bin { place: room.template.clone(), origin: Origin::New(room.group) })
        }
        None => Err(rooms.iter().filter_map(|room| Some((room.group.to_owned(), obstacle(room)?))).collect()),
    }
}

impl Fleet {
    /// The node as a place, with what is left on it.
    pub(super) fn place_on<'a>(&'a self, member: &'a super::Member) -> Place<'a> {
        let node = &member.node;
        let mut free = node.allocatable.clone();
        for pod in self.pods_on(&node.name).filter(|pod| !pod.finished) {
            free.subtract(&pod.requests);
        }
        Place { name: Some(&node.name), labels: &node.labels, taints: &node.taints, free }
    }
}
