//! Buffers: the room that they ask for, whether it would still be there without a node, and what is said of it.
//!
//! Their pods are placed by `place` after all that wait. Whether a node may go is found out in the same way and order, so
//! that what goes is not missed, and made anew, at the next look.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::census::Census;
use super::place::{Origin, Placement, Search, Seat, demand, in_order};
use super::pods::Entry;
use super::{Action, Fleet, Target, count};
use crate::agenda::Agenda;
use crate::buffer::{Buffer, Room, Status};
use crate::kubernetes::Pod;
use crate::reason::{Obstacle, Reason, Stay};
use crate::resources::Resources;
use crate::schedule::{Cluster, NodeId, ShapeId};
use crate::time::Instant;

/// Between two statuses of one buffer: a burst that takes its room, pod by pod, changes it with every look.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Namespace and name.
pub(super) type Key = (String, String);

/// One buffer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Known {
    pub(super) buffer: Buffer,
    /// What was last said on the object, and when.
    pub(super) told: Option<(Status, Instant)>,
}

/// Who wants room for pods that are not there.
#[derive(Clone, Copy)]
pub(super) enum Whose<'a> {
    Buffer(&'a Key),
    /// Work waits for these workers already.
    Ray {
        cluster: &'a str,
        group: &'a str,
    },
}

/// Room to be kept.
#[derive(Clone, Copy)]
pub(super) struct Reserve<'a> {
    pub(super) whose: Whose<'a>,
    /// One of its pods.
    pub(super) pod: &'a Pod,
    pub(super) count: u32,
}

impl Reserve<'_> {
    pub(super) fn full_name(&self) -> String {
        match self.whose {
            Whose::Buffer((namespace, name)) => format!("{namespace}/{name}"),
            Whose::Ray { cluster, group } => format!("{cluster} {group}"),
        }
    }

    /// Why something is done for this many of them.
    pub(super) fn wanted(&self, count: usize) -> Reason {
        let first = self.full_name();
        match self.whose {
            Whose::Buffer(_) => Reason::BufferWanted { count, first },
            Whose::Ray { .. } => Reason::RayWorkersWanted { count, first },
        }
    }

    /// Why a node stays that has this room.
    fn stay(&self) -> Stay {
        match self.whose {
            Whose::Buffer(_) => Stay::Buffered { buffer: self.full_name() },
            Whose::Ray { cluster, group } => Stay::Anticipated { cluster: cluster.to_owned(), group: group.to_owned() },
        }
    }
}

/// How much of it there is.
#[derive(Default)]
pub(super) struct Stock {
    pub(super) there: u32,
    /// What is in the way of the rest at each group, if anything is.
    pub(super) refused: Option<Vec<(String, Obstacle)>>,
}

impl Fleet {
    /// What Ray clusters and then buffers ask for, in the order in which it is seen to: as of pods, the important and
    /// large ones first.
    pub(super) fn reserves(&self, agenda: &mut Agenda) -> Vec<Reserve<'_>> {
        let buffers = self.buffers.iter().filter_map(|(key, known)| {
            let (pod, count) = known.buffer.wish().ok()?;
            Some(Reserve { whose: Whose::Buffer(key), pod, count })
        });
        let mut reserves = self.ray_reserves(agenda);
        reserves.extend(buffers);
        let is_spare = |reserve: &Reserve| matches!(reserve.whose, Whose::Buffer(_));
        let key = |reserve: &Reserve| (is_spare(reserve), reserve.full_name());
        reserves.sort_by(|a, b| {
            is_spare(a).cmp(&is_spare(b)).then_with(|| (demand(a.pod), key(a)).cmp(&(demand(b.pod), key(b))))
        });
        reserves
    }

    /// Tells people how it stands with each buffer, if that is not what they were told.
    pub(super) fn tell_of_buffers(&self, agenda: &mut Agenda, placement: &Placement) -> Vec<Action> {
        let mut actions = Vec::new();
        for (key, Known { buffer, told }) in &self.buffers {
            let status = self.status(buffer, placement.stock.get(key));
            let known = told.as_ref().is_some_and(|(told, _)| *told == status);
            let due = |agenda: &mut Agenda| told.as_ref().is_none_or(|(_, at)| agenda.due(*at + TELL_EVERY));
            if !known && due(agenda) && self.ready(agenda, &Target::Buffer(key.clone())) {
                let (namespace, name) = key.clone();
                actions.push(Action::ShowBuffer { namespace, name, uid: buffer.uid.clone(), status });
            }
        }
        actions
    }

    fn status(&self, buffer: &Buffer, stock: Option<&Stock>) -> Status {
        let nothing = Stock::default();
        let Stock { there, refused } = stock.unwrap_or(&nothing);
        let (replicas, room) = match buffer.wish() {
            Err(problem) => (None, Room::Unknown(problem)),
            Ok((_, count)) => {
                let room = match refused {
                    _ if *there >= count => Room::There,
                    Some(groups) => Room::Refused { there: *there, groups: groups.clone() },
                    None => Room::Coming { there: *there },
                };
                (Some(count), room)
            }
        };
        let template = buffer.source.as_ref().ok().and_then(|source| source.template.clone());
        Status { generation: buffer.generation, template, replicas, room }
    }

    /// The room that buffers have on nodes that serve.
    pub(super) fn kept<'a>(
        &'a self,
        now: Instant,
        census: &[Census<'a>],
        waiting: &[(&'a Entry, Instant)],
        reserves: &[Reserve<'a>],
    ) -> Kept<'a> {
        let leaving = census.iter().flat_map(|group| &group.leaving);
        let to_move = leaving.flat_map(|(member, ..)| self.pods.on(&member.node.name));
        let to_move: Vec<&Pod> = to_move.filter(|pod| pod.like.holds_node()).map(|pod| pod.like.as_ref()).collect();
        Kept::new(self.seats(now, census), waiting.to_vec(), reserves, &to_move)
    }
}

/// The nodes that serve, with what waits and the buffers' pods on them.
#[derive(Default)]
pub(super) struct Kept<'a> {
    cluster: Cluster<'a>,
    ids: BTreeMap<&'a str, NodeId>,
    /// Which nodes take pods.
    open: Vec<bool>,
    lots: Vec<Lot<'a>>,
    /// The node that was released last, and what was sought and found of each lot before.
    released: Option<(NodeId, Vec<(u32, u32)>)>,
}

/// One buffer's part.
struct Lot<'a> {
    reserve: Reserve<'a>,
    shape: ShapeId,
    /// For how many pods room is looked for: its own, and as many as pods that are to be moved may take the room of,
    /// wherever the scheduler puts them.
    sought: u32,
    /// How many of these found it with all nodes in place: so many have to.
    found: u32,
    at: Vec<NodeId>,
}

impl<'a> Kept<'a> {
    fn new(
        seats: Vec<Seat<'a>>,
        waiting: Vec<(&'a Entry, Instant)>,
        reserves: &[Reserve<'a>],
        to_move: &[&Pod],
    ) -> Self {
        let mut kept = Self::default();
        for seat in seats {
            kept.open.push(matches!(seat.origin, Origin::Serving(_)));
            let name = seat.place.name;
            let id = seat.put_into(&mut kept.cluster);
            kept.ids.extend(name.map(|name| (name, id)));
        }
        let mut search = Search::default();
        for (shape, ..) in in_order(&mut kept.cluster, waiting) {
            search.turn_to(shape);
            if let Some(node) = search.find(&kept.cluster, |node| kept.open[node]) {
                search.found(&kept.cluster, node);
                kept.cluster.put(node, shape);
            } else {
                search.refused = Some(Vec::new());
            }
        }
        for reserve in reserves {
            let shape = kept.cluster.shape(reserve.pod);
            let sought = reserve.count.saturating_add(room_of(to_move, reserve.pod));
            kept.lots.push(Lot { reserve: *reserve, shape, sought, found: 0, at: Vec::new() });
        }
        kept.fill();
        for lot in &mut kept.lots {
            lot.found = count(lot.at.len());
        }
        kept
    }

    /// Goes on without the node, whose pods are moved, or says who needs it.
    pub(super) fn release(&mut self, node: &str, to_move: &[&Pod]) -> Result<(), Stay> {
        let Some(&id) = self.ids.get(node).filter(|_| !self.lots.is_empty()) else { return Ok(()) };
        let before = self.lots.iter().map(|lot| (lot.sought, lot.found)).collect();
        self.released = Some((id, before));
        if to_move.is_empty() && self.lots.iter().all(|lot| !lot.at.contains(&id)) {
            // First fit: without a node that was passed over, all comes out the same.
            self.open[id] = false;
            return Ok(());
        }
        for lot in self.lots.iter_mut().filter(|lot| lot.found > 0) {
            let more = room_of(to_move, lot.reserve.pod);
            (lot.sought, lot.found) = (lot.sought.saturating_add(more), lot.found.saturating_add(more));
        }
        self.open[id] = false;
        self.fill();
        let short = self.lots.iter().find(|lot| count(lot.at.len()) < lot.found);
        let Some(short) = short.map(|lot| lot.reserve.stay()) else { return Ok(()) };
        self.reopen(node);
        Err(short)
    }

    /// The node that was released last stays after all.
    pub(super) fn reopen(&mut self, node: &str) {
        let Some((id, before)) = self.released.take_if(|(id, _)| self.ids.get(node) == Some(id)) else { return };
        for (lot, before) in self.lots.iter_mut().zip(before) {
            (lot.sought, lot.found) = before;
        }
        self.open[id] = true;
        self.fill();
    }

    /// Places all buffers' pods anew.
    fn fill(&mut self) {
        for lot in &mut self.lots {
            for node in lot.at.drain(..) {
                self.cluster.take(node, lot.shape);
            }
        }
        let mut search = Search::default();
        for lot in &mut self.lots {
            search.turn_to(lot.shape);
            for _ in 0..lot.sought {
                let Some(node) = search.find(&self.cluster, |node| self.open[node]) else { break };
                search.found(&self.cluster, node);
                self.cluster.put(node, lot.shape);
                lot.at.push(node);
            }
        }
    }
}

/// For how many of the buffer's pods these can take the room, wherever they are put.
fn room_of(pods: &[&Pod], pod: &Pod) -> u32 {
    let times = |asked: &Resources| {
        let times = pod.requests.iter().map(|(name, amount)| asked.amount(name).div_ceil(amount));
        u32::try_from(times.max().unwrap_or(0)).unwrap_or(u32::MAX)
    };
    pods.iter().map(|pod| times(&pod.requests)).fold(0, u32::saturating_add)
}
