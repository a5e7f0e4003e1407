//! The middle of a picture: tasks and pods that wait, and the nodes by Auto Scaling group.

use ebb_core::classify::{Class, Missing};
use ebb_core::resources::Resources;
use ebb_core::time::{Instant, format_seconds};
use ebb_core::units::Permille;
use ebb_core::view::{Group, Node, Snapshot};

use super::canvas::{Canvas, Rect, fill, rect};
use super::frame::{CARD, EBB, FAINT, INK, MUTED, PANEL, RULE, WORKERS, pair};
use super::story::Story;
use super::text::{bold, plain};

const TILE: f32 = 13.0;
const PITCH: f32 = 16.0;
/// Node cards side by side, over all groups.
const COLUMNS: usize = 7;
const ROWS: usize = 2;

pub(super) fn draw(canvas: &mut Canvas, at: Rect, story: &Story<'_>, index: usize) {
    let snapshot = &story.run.snapshots[index];
    let queue = Rect { w: 254.0, ..at };
    waiting(canvas, queue, story, snapshot);

    let groups = &snapshot.cluster.groups;
    let columns = columns(groups);
    let shares: Vec<f32> = columns.iter().map(|columns| *columns as f32).collect();
    let rest = rect(queue.right() + 16.0, at.y, at.right() - queue.right() - 16.0, at.h);
    for ((group, columns), panel) in groups.iter().zip(columns).zip(rest.columns(&shares, 16.0)) {
        nodes(canvas, panel, story, index, group, columns);
    }
}

/// How many columns of cards each group gets: as many as its maximum needs, and fewer for the largest where there are
/// too many.
fn columns(groups: &[Group]) -> Vec<usize> {
    let mut columns: Vec<usize> = groups.iter().map(|group| (group.max as usize).div_ceil(ROWS).max(1)).collect();
    while columns.iter().sum::<usize>() > COLUMNS {
        match columns.iter_mut().max() {
            Some(largest) if *largest > 1 => *largest -= 1,
            _ => break,
        }
    }
    columns
}

fn waiting(canvas: &mut Canvas, at: Rect, story: &Story<'_>, snapshot: &Snapshot) {
    canvas.rect(at, CARD);
    let inner = rect(at.x + 14.0, at.y, at.w - 28.0, at.h);
    let mut y = at.y + 26.0;
    canvas.text(inner.x, y, bold(16.0, INK), "Ray's task queue");
    for (number, group) in snapshot.ray.iter().take(2).enumerate() {
        let (strong, light) = WORKERS[number % WORKERS.len()];
        y += 25.0;
        let about = format!("{} queued, {} run", group.tasks_queued, group.tasks_running);
        pair(canvas, inner, y, (plain(15.0, INK), &group.name), (plain(14.0, MUTED), &about));
        y += 9.0;
        let rows = if snapshot.ray.len() == 1 { 8 } else { 5 - number * 2 };
        let running = std::iter::repeat_n(strong, group.tasks_running as usize);
        tiles(canvas, inner, y, rows, running.chain(std::iter::repeat_n(light, group.tasks_queued as usize)));
        y += PITCH * rows as f32 - 2.0;
    }

    // From the bottom up, so that it stays where it is.
    let pods = &snapshot.cluster.waiting;
    let mut y = at.bottom() - 66.0;
    canvas.line((inner.x, y - 21.0), (inner.right(), y - 21.0), fill("none").stroke(RULE, 1.0));
    let longest = pods.first().map(|pod| format!("up to {}", seconds(snapshot.now, pod.since)));
    pair(
        canvas,
        inner,
        y,
        (bold(16.0, INK), &format!("{} waiting {}", pods.len(), if pods.len() == 1 { "pod" } else { "pods" })),
        (plain(14.0, MUTED), longest.as_deref().unwrap_or_default()),
    );
    y += 11.0;
    let colours = pods.iter().map(|pod| colours_of(story, &pod.pod).1);
    tiles(canvas, inner, y, 1, colours);
    let because = pods.iter().find_map(|pod| pod.because.as_ref()).map(ToString::to_string);
    let because = because.unwrap_or_else(|| if pods.is_empty() { "every pod has a node" } else { "" }.to_owned());
    canvas.text(inner.x, y + 36.0, plain(14.0, FAINT), &plain(14.0, FAINT).shorten(&because, inner.w));
}

/// Small squares in rows; what has no room is counted.
fn tiles(canvas: &mut Canvas, at: Rect, y: f32, rows: usize, colours: impl Iterator<Item = &'static str>) {
    let colours: Vec<_> = colours.collect();
    let per_row = ((at.w + PITCH - TILE) / PITCH) as usize;
    let room = per_row * rows;
    // The count takes the place of three tiles.
    let shown = if colours.len() > room { room - 3 } else { colours.len() };
    let place = |index: usize| (at.x + PITCH * (index % per_row) as f32, y + PITCH * (index / per_row) as f32);
    for (index, colour) in colours[..shown].iter().enumerate() {
        let (x, y) = place(index);
        canvas.rect(rect(x, y, TILE, TILE), fill(colour).round(3.0));
    }
    if shown < colours.len() {
        let (x, y) = place(shown);
        canvas.text(x, y + 12.0, plain(14.0, MUTED), &format!("+{}", colours.len() - shown));
    }
}

/// Of the worker group that a pod belongs to, by its name.
fn colours_of(story: &Story<'_>, pod: &str) -> (&'static str, &'static str) {
    let name = pod.rsplit('/').next().unwrap_or(pod);
    let of_group = |group: &str| name.strip_prefix(group).is_some_and(|rest| rest.starts_with('-'));
    let number = story.scenario.worker_groups.iter().position(|group| of_group(&group.name));
    number.map_or((FAINT, RULE), |number| WORKERS[number % WORKERS.len()])
}

fn nodes(canvas: &mut Canvas, at: Rect, story: &Story<'_>, index: usize, group: &Group, columns: usize) {
    let snapshot = &story.run.snapshots[index];
    canvas.rect(at, CARD);
    let inner = rect(at.x + 12.0, at.y, at.w - 24.0, at.h);
    let of_group = || snapshot.cluster.nodes.iter().filter(|node| node.group.as_ref() == Some(&group.name));
    let ready = of_group().filter(|node| node.ready).count();
    let desired = group.desired.map_or("?".to_owned(), |desired| desired.to_string());

    pair(canvas, inner, at.y + 26.0, (bold(16.0, INK), &group.name), (plain(14.0, MUTED), &group.instance_type));
    if columns > COLUMNS / 2 {
        // Where there is room for it: how to read the bars.
        let mut x = inner.x + bold(16.0, INK).width(&group.name) + 36.0;
        for (colour, height, name) in [("#b4c3d4", 8.0, "requested"), (EBB, 4.0, "really used")] {
            canvas.rect(rect(x, at.y + 21.0 - height / 2.0, 22.0, height), fill(colour).round(2.0));
            x = canvas.text(x + 29.0, at.y + 26.0, plain(14.0, MUTED), name) + 22.0;
        }
    }
    let wanted = format!("{desired} desired, {ready} ready");
    let limits = format!("min {}, max {}", group.min, group.max);
    pair(canvas, inner, at.y + 47.0, (bold(15.0, EBB), &wanted), (plain(14.0, MUTED), &limits));

    let slots = columns * ROWS;
    let top = at.y + 60.0;
    let height = (at.bottom() - 12.0 - top - 10.0) / ROWS as f32;
    let cells = rect(inner.x, top, inner.w, height).columns(&vec![1.0; columns], 10.0);
    let cell = |slot: usize| {
        // Filled column by column would leave the lower row empty for long; row by row reads like text.
        let column = cells[slot % columns];
        Rect { y: top + (height + 10.0) * (slot / columns) as f32, ..column }
    };

    let mut free: Vec<bool> = vec![true; slots];
    let mut hidden = 0;
    for node in of_group() {
        let slot = story.places[index].get(node.name.as_str()).copied().unwrap_or(slots);
        match free.get_mut(slot) {
            Some(is_free) => {
                *is_free = false;
                card(canvas, cell(slot), story, snapshot.now, node);
            }
            None => hidden += 1,
        }
    }
    let mut booting = (group.instances as usize).saturating_sub(of_group().count());
    let limit = (group.max as usize).min(slots);
    for slot in (0..limit).filter(|slot| free[*slot]) {
        let place = cell(slot);
        if booting > 0 {
            booting -= 1;
            canvas.rect(place, fill("#fdf6ec").stroke("#d99a4e", 1.5).dashed().round(7.0));
            canvas.text_middle(
                place.x + place.w / 2.0,
                place.y + place.h / 2.0 + 5.0,
                plain(14.0, "#a8621a"),
                "booting",
            );
        } else {
            canvas.rect(place, fill("none").stroke(RULE, 1.0).dashed().round(7.0));
        }
    }
    if hidden + booting > 0 {
        let place = cell(slots - 1);
        let more = format!("+{} more", hidden + booting);
        let width = bold(14.0, PANEL).width(&more) + 16.0;
        let badge = rect(place.right() - width - 4.0, place.bottom() - 26.0, width, 22.0);
        canvas.rect(badge, fill(MUTED).round(11.0));
        canvas.text(badge.x + 8.0, badge.y + 16.0, bold(14.0, PANEL), &more);
    }
}

/// A node's state: in words, its colour, and its card's.
fn state(now: Instant, node: &Node) -> (String, &'static str, &'static str, &'static str) {
    let amber = ("#9a6700", "#fff6df", "#d9a520");
    let (text, (ink, tint, edge)) = match node.class {
        _ if node.drained => ("drained".to_owned(), (FAINT, "#f1f3f6", "#c3ccd7")),
        _ if node.draining => ("draining".to_owned(), amber),
        _ if !node.ready => ("joining".to_owned(), ("#a8621a", "#fdf6ec", "#d99a4e")),
        Some(Class::Busy { .. }) => ("busy".to_owned(), ("#0b7375", "#eef9f8", "#57b3b1")),
        Some(Class::Idle { since }) => (format!("idle {}", seconds(now, since)), (MUTED, PANEL, "#c3ccd7")),
        Some(Class::Unknown { missing: Missing::History, .. }) => ("just joined".to_owned(), (MUTED, PANEL, "#c3ccd7")),
        Some(Class::Unknown { .. }) | None => ("unknown".to_owned(), (FAINT, PANEL, RULE)),
    };
    (text, ink, tint, edge)
}

fn card(canvas: &mut Canvas, at: Rect, story: &Story<'_>, now: Instant, node: &Node) {
    let (text, ink, tint, edge) = state(now, node);
    canvas.rect(at, fill(tint).stroke(edge, 1.5).round(7.0));
    let inner = rect(at.x + 9.0, at.y, at.w - 18.0, at.h);
    let name = if node.drained { FAINT } else { INK };
    canvas.text(inner.x, at.y + 19.0, bold(13.0, name), &bold(13.0, name).shorten(&node.name, inner.w));
    canvas.text(inner.x, at.y + 36.0, plain(14.0, ink), &plain(14.0, ink).shorten(&text, inner.w));

    let has_gpu = node.allocatable.has_gpu();
    let workers: Vec<_> = node.pods.iter().filter(|pod| !pod.daemon).collect();
    let y = at.y + 45.0;
    for (index, pod) in workers.iter().enumerate().take(((inner.w + PITCH - TILE) / PITCH) as usize) {
        let (strong, light) = colours_of(story, &pod.name);
        let tile = rect(inner.x + PITCH * index as f32, y, TILE, TILE);
        canvas.rect(tile, fill(if pod.terminating { light } else { strong }).round(3.0));
    }

    let Some(used) = node.utilization else { return };
    let requested = |name: &str| share(&node.requested, &node.allocatable, name);
    let part = |used: Permille| f32::from(used.get()) / 1000.0;
    let mut bars = vec![("CPU", requested("cpu"), used.cpu.map(part))];
    if has_gpu {
        bars.push(("GPU", requested(ebb_core::resources::NVIDIA_GPU), used.gpu.busy().map(part)));
    }
    let mut y = at.bottom() - 9.0 - 18.0 * (bars.len() - 1) as f32;
    for (label, requested, used) in bars {
        let end = canvas.text(inner.x, y, plain(13.0, MUTED), label);
        let track = rect(end + 7.0, y - 9.0, inner.right() - end - 7.0, 8.0);
        canvas.rect(track, fill("#e6ebf1").round(2.0));
        canvas.rect(Rect { w: track.w * requested, ..track }, fill("#b4c3d4").round(2.0));
        if let Some(used) = used {
            canvas.rect(rect(track.x, track.y + 2.0, track.w * used, 4.0), fill(EBB).round(1.0));
        }
        y += 18.0;
    }
}

fn share(part: &Resources, whole: &Resources, name: &str) -> f32 {
    match whole.amount(name) {
        0 => 0.0,
        whole => (part.amount(name) as f32 / whole as f32).min(1.0),
    }
}

fn seconds(now: Instant, since: Instant) -> String {
    format_seconds(now.since(since))
}
