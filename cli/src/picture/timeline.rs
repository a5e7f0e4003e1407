//! The bottom of a picture: the whole run as lines, with a cursor at the moment shown.

use std::fmt::Write as _;

use ebb_core::view::Snapshot;

use super::canvas::{Canvas, Rect, fill, rect};
use super::frame::{CARD, EBB, FAINT, INK, MUTED, PANEL, RULE};
use super::story::Story;
use super::text::{bold, plain};

const QUEUE: &str = "#3b76d1";
const WORKERS: &str = "#8156c4";
const DESIRED: &str = "#c8701a";

fn queued(snapshot: &Snapshot) -> u32 {
    snapshot.ray.iter().map(|group| group.tasks_queued).sum()
}

fn workers(snapshot: &Snapshot) -> u32 {
    snapshot.ray.iter().map(|group| group.workers).sum()
}

fn nodes(snapshot: &Snapshot) -> u32 {
    snapshot.cluster.nodes.iter().filter(|node| node.ready).count() as u32
}

fn desired(snapshot: &Snapshot) -> u32 {
    snapshot.cluster.groups.iter().filter_map(|group| group.desired).sum()
}

pub(super) fn draw(canvas: &mut Canvas, at: Rect, story: &Story<'_>, index: usize) {
    let snapshots = &story.run.snapshots;
    let now = &snapshots[index];
    canvas.rect(at, CARD);
    legend(canvas, rect(at.x + 14.0, at.y, 208.0, at.h), now);

    let plot = rect(at.x + 252.0, at.y + 12.0, at.w - 252.0 - 18.0, at.h - 38.0);
    let millis = |snapshot: &Snapshot| snapshot.now.since(story.run.started).as_millis() as f32;
    let whole = snapshots.last().map_or(1.0, millis).max(1.0);
    let x = |snapshot: &Snapshot| plot.x + plot.w * millis(snapshot) / whole;
    let most = |series: fn(&Snapshot) -> u32| snapshots.iter().map(series).max().unwrap_or(0).max(1) as f32;

    // Tasks have their own scale; workers and nodes share one.
    let curve = |series: fn(&Snapshot) -> u32, scale: f32| {
        let y = |value: u32| plot.bottom() - (plot.h - 4.0) * value as f32 / scale;
        let mut value = snapshots.first().map_or(0, series);
        let mut path = format!("M{:.1} {:.1}", plot.x, y(value));
        for snapshot in snapshots {
            let next = series(snapshot);
            if next != value {
                value = next;
                // A write to a string cannot fail.
                let _ = write!(path, "H{:.1}V{:.1}", x(snapshot), y(next));
            }
        }
        let _ = write!(path, "H{:.1}", plot.right());
        path
    };
    let area = format!("{}V{:.1}H{:.1}Z", curve(queued, most(queued)), plot.bottom(), plot.x);
    let counts = most(workers).max(most(nodes)).max(most(desired));
    canvas.path(&area, fill(QUEUE).opacity(0.2));
    canvas.path(&curve(workers, counts), fill("none").stroke(WORKERS, 2.0));
    canvas.path(&curve(desired, counts), fill("none").stroke(DESIRED, 2.0).dashed());
    canvas.path(&curve(nodes, counts), fill("none").stroke(EBB, 2.5));

    // What is to come is pale.
    let cursor = x(now);
    canvas.rect(rect(cursor, plot.y - 2.0, plot.right() - cursor + 2.0, plot.h + 3.0), fill(PANEL).opacity(0.72));
    canvas.line((plot.x, plot.bottom()), (plot.right(), plot.bottom()), fill("none").stroke(RULE, 1.0));
    canvas.line((cursor, plot.y - 2.0), (cursor, plot.bottom()), fill("none").stroke(INK, 1.5));
    canvas.circle(cursor, plot.bottom(), 4.0, fill(INK));

    // Round times, about eight of them.
    let minutes = whole / 60_000.0;
    let every = [1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0];
    let every = every.into_iter().find(|every| minutes / every <= 9.0).unwrap_or(240.0);
    for tick in 0..=(minutes / every) as u32 {
        let minute = tick as f32 * every;
        let x = plot.x + plot.w * minute / minutes;
        let (unit, value) = if every < 60.0 { ("min", minute) } else { ("h", minute / 60.0) };
        let label = if tick == 0 { format!("0 {unit}") } else { value.to_string() };
        let half = plain(14.0, MUTED).width(&label) / 2.0;
        if x + half <= at.right() - 4.0 {
            canvas.line((x, plot.bottom()), (x, plot.bottom() + 4.0), fill("none").stroke(FAINT, 1.0));
            canvas.text_middle(x, plot.bottom() + 19.0, plain(14.0, MUTED), &label);
        }
    }
}

fn legend(canvas: &mut Canvas, at: Rect, now: &Snapshot) {
    let lines = [
        ("Tasks queued", QUEUE, queued(now)),
        ("Workers", WORKERS, workers(now)),
        ("Nodes desired", DESIRED, desired(now)),
        ("Nodes ready", EBB, nodes(now)),
    ];
    let mut y = at.y + 28.0;
    for (name, colour, value) in lines {
        let mark = rect(at.x, y - 7.0, 16.0, 4.0);
        match colour {
            QUEUE => canvas.rect(rect(at.x, y - 11.0, 16.0, 11.0), fill(QUEUE).opacity(0.3)),
            DESIRED => canvas.line(
                (mark.x, mark.y + 2.0),
                (mark.right(), mark.y + 2.0),
                fill("none").stroke(colour, 2.5).dashed(),
            ),
            _ => canvas.rect(mark, fill(colour).round(2.0)),
        }
        canvas.text(at.x + 26.0, y, plain(15.0, MUTED), name);
        canvas.text_right(at.right(), y, bold(15.0, INK), &value.to_string());
        y += 25.0;
    }
}
