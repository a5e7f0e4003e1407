//! One moment of a run as a picture: where everything stands and what colour it has.

use ebb_core::time::{Instant, format_seconds};
use ebb_core::view::{Level, Snapshot};

use super::canvas::{Canvas, HEIGHT, Paint, Rect, WIDTH, fill, rect};
use super::cluster;
use super::story::{Moment, STAGES, Story};
use super::text::{Font, bold, plain};
use super::timeline;

pub(super) const PAPER: &str = "#f4f7fa";
pub(super) const PANEL: &str = "#ffffff";
pub(super) const INK: &str = "#1d2939";
pub(super) const MUTED: &str = "#5d6b7e";
pub(super) const FAINT: &str = "#94a1b2";
pub(super) const RULE: &str = "#dbe2ea";
pub(super) const EBB: &str = "#0e8a8c";

pub(super) const MARGIN: f32 = 28.0;
pub(super) const INNER: f32 = WIDTH - 2.0 * MARGIN;

/// Colours of the worker groups, in their order: dark for what runs, light for what waits.
pub(super) const WORKERS: [(&str, &str); 4] =
    [("#3b76d1", "#c9dbf6"), ("#8156c4", "#dfd2f3"), ("#b8577f", "#f1d3df"), ("#6d7a3b", "#e0e5c6")];

/// The flow's levels with their colours: strong, and as a tint.
const LEVELS: [(Level, &str, &str, &str); 4] = [
    (Level::Ray, "Ray autoscaler", "#3b76d1", "#e8f0fc"),
    (Level::Hpa, "Horizontal Pod Autoscaler", "#8156c4", "#f0eafa"),
    (Level::NodeAutoscaler, "Ebb node autoscaler", EBB, "#e0f4f3"),
    (Level::AutoScaling, "AWS Auto Scaling", "#c8701a", "#fcefe0"),
];

pub(super) const CARD: Paint = fill(PANEL).stroke(RULE, 1.0).round(10.0);

pub(super) fn draw(story: &Story<'_>, moment: Moment) -> Canvas {
    let mut canvas = Canvas::default();
    let snapshot = &story.run.snapshots[moment.snapshot];
    canvas.rect(rect(0.0, 0.0, WIDTH, HEIGHT), fill(PAPER));
    header(&mut canvas, story, snapshot, story.stage_at(moment.snapshot));
    stages(&mut canvas, rect(MARGIN, 76.0, INNER, 30.0), story.stage_at(moment.snapshot));
    levels(&mut canvas, rect(MARGIN, 120.0, INNER, 118.0), story, moment);
    cluster::draw(&mut canvas, rect(MARGIN, 254.0, INNER, 300.0), story, moment.snapshot);
    timeline::draw(&mut canvas, rect(MARGIN, 570.0, INNER, 126.0), story, moment.snapshot);
    canvas
}

fn header(canvas: &mut Canvas, story: &Story<'_>, snapshot: &Snapshot, stage: usize) {
    let end = canvas.text(MARGIN, 40.0, bold(27.0, EBB), "Ebb");
    canvas.text(end + 14.0, 40.0, bold(27.0, INK), STAGES[stage].title);
    let about = format!("{} · simulated, seed {}", story.scenario.name, story.run.seed);
    canvas.text(MARGIN, 62.0, plain(15.0, MUTED), &plain(15.0, MUTED).shorten(&about, 700.0));

    let right = WIDTH - MARGIN;
    canvas.text_right(right, 40.0, bold(27.0, INK), &clock(snapshot.now, story.run.started));
    let dollars = |dollars: Option<ebb_core::price::Dollars>| dollars.map_or("$?".to_owned(), |sum| sum.to_string());
    let cost = format!("{} per hour", dollars(snapshot.cost.per_hour));
    let left = canvas.text_right(right, 62.0, plain(15.0, MUTED), &cost);
    canvas.text_right(left - 10.0, 62.0, bold(15.0, INK), &format!("{} so far", dollars(snapshot.cost.total)));
}

/// Virtual time since the start.
pub(super) fn clock(now: Instant, started: Instant) -> String {
    let seconds = now.since(started).as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn stages(canvas: &mut Canvas, at: Rect, current: usize) {
    for (number, (stage, column)) in STAGES.iter().zip(at.columns(&[1.0; 7], 8.0)).enumerate() {
        let (paint, font) = match number.cmp(&current) {
            std::cmp::Ordering::Less => (fill("#d7ecec").round(15.0), plain(15.0, INK)),
            std::cmp::Ordering::Equal => (fill(EBB).round(15.0), bold(15.0, PANEL)),
            std::cmp::Ordering::Greater => (fill("#e6ebf1").round(15.0), plain(15.0, MUTED)),
        };
        canvas.rect(column, paint);
        canvas.text_middle(column.x + column.w / 2.0, at.y + 20.5, font, &format!("{} · {}", number + 1, stage.short));
    }
}

fn levels(canvas: &mut Canvas, at: Rect, story: &Story<'_>, moment: Moment) {
    const GAP: f32 = 28.0;
    let now = story.run.snapshots[moment.snapshot].now;
    for (number, ((level, title, strong, tint), column)) in
        LEVELS.into_iter().zip(at.columns(&[1.0; 4], GAP)).enumerate()
    {
        let step = story.last_step(level, moment);
        let acts = step.is_some_and(|step| step.at > moment.since);
        let paint = if acts { fill(tint).stroke(strong, 2.0).round(10.0) } else { CARD };
        canvas.rect(column, paint);
        if number > 0 {
            let (x, y) = (column.x - GAP / 2.0, column.y + column.h / 2.0);
            let arrow = format!("M{:.1} {:.1}l7 7l-7 7", x - 3.0, y - 7.0);
            canvas.path(&arrow, fill("none").stroke(if acts { strong } else { FAINT }, 2.0));
        }
        let (left, width) = (column.x + 14.0, column.w - 28.0);
        canvas.circle(left + 9.0, column.y + 21.0, 10.0, fill(if acts { strong } else { FAINT }));
        canvas.text_middle(left + 9.0, column.y + 26.0, bold(14.0, PANEL), &(number + 1).to_string());
        canvas.text(left + 27.0, column.y + 26.5, bold(16.0, if acts { INK } else { MUTED }), title);
        let Some(step) = step else {
            canvas.text(left, column.y + 53.0, plain(15.0, FAINT), "nothing to do yet");
            continue;
        };
        let ago = format!("{} ago", format_seconds(now.since(step.at)));
        let (what, because) = if acts { (INK, MUTED) } else { (MUTED, FAINT) };
        let (what, because) = (plain(15.0, what), plain(14.0, because));
        let mut y = column.y + 51.0;
        for line in what.wrap(&step.what, width, 2) {
            canvas.text(left, y, what, &line);
            y += 18.0;
        }
        // Beneath it the reason, as far as there is room, and in the corner how long ago.
        let bottom = column.bottom() - 12.0;
        let ago_left = canvas.text_right(column.right() - 14.0, bottom, plain(14.0, FAINT), &ago);
        let room = if y + 17.0 <= bottom { 2 } else { 1 };
        let lines = because.wrap(&step.because, width, room);
        for (index, line) in lines.into_iter().enumerate() {
            let y = bottom - 17.0 * (room - 1 - index) as f32;
            let width = if index + 1 == room { ago_left - 8.0 - left } else { width };
            canvas.text(left, y, because, &because.shorten(&line, width));
        }
    }
}

/// A name on the left and something about it on the right; the name gives way.
pub(super) fn pair(
    canvas: &mut Canvas,
    at: Rect,
    baseline: f32,
    (font, name): (Font, &str),
    (other, about): (Font, &str),
) {
    let left = canvas.text_right(at.right(), baseline, other, about);
    canvas.text(at.x, baseline, font, &font.shorten(name, left - 8.0 - at.x));
}
