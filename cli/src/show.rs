//! The flow as it happens, in the terminal: who decides what and why, time-compressed, over a line that shows where the
//! cluster is.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant as Wall};

use ebb_core::time::{Instant, format_duration, format_seconds};
use ebb_core::view::{Level, Snapshot, Step};
use ebb_sim::run::Run;
use ebb_sim::scenario::Scenario;

/// As wide as the README shows it.
const WIDTH: usize = 110;
/// Steps of the same kind this close together are one line.
const TOGETHER: Duration = Duration::from_secs(200);
/// Where what was decided begins.
const INDENT: usize = 27;

/// Prints the run's story; over `length`, or all at once.
pub(crate) fn play(
    out: &mut impl Write,
    scenario: &Scenario,
    run: &Run,
    colour: bool,
    length: Option<Duration>,
) -> io::Result<()> {
    writeln!(out, "{}, seed {}\n{}", scenario.name, run.seed, wrapped(&scenario.about))?;
    let mut lines = story(&run.steps).into_iter().peekable();
    if let Some(length) = length.filter(|_| !run.snapshots.is_empty()) {
        let start = Wall::now();
        let frames = u32::try_from(run.snapshots.len()).unwrap_or(u32::MAX);
        for (frame, snapshot) in (1..).zip(&run.snapshots) {
            // Back to the start of the line, which is erased first.
            write!(out, "\r\x1b[K")?;
            while let Some(line) = lines.next_if(|line| line.step.at <= snapshot.now) {
                write!(out, "{}", line.text(run.started, colour))?;
            }
            write!(out, "{}", status(scenario, run, snapshot))?;
            out.flush()?;
            std::thread::sleep((length * frame / frames).saturating_sub(start.elapsed()));
        }
        write!(out, "\r\x1b[K")?;
    }
    for line in lines {
        write!(out, "{}", line.text(run.started, colour))?;
    }
    Ok(())
}

/// One step, and how many like it followed.
struct Line<'a> {
    step: &'a Step,
    more: u32,
    until: Instant,
}

/// Steps that say the same but for numbers and names, soon after each other, are told once.
fn story(steps: &[Step]) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    let mut last: BTreeMap<(Level, String), usize> = BTreeMap::new();
    for step in steps {
        let words = step.what.split(' ').filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
        let kind = (step.level, words.collect::<Vec<_>>().join(" "));
        match last.get(&kind).map(|index| &mut lines[*index]) {
            Some(line) if step.at.since(line.until) <= TOGETHER => {
                line.more += 1;
                line.until = step.at;
            }
            _ => {
                last.insert(kind, lines.len());
                lines.push(Line { step, more: 0, until: step.at });
            }
        }
    }
    lines
}

impl Line<'_> {
    fn text(&self, started: Instant, colour: bool) -> String {
        let Self { step, more, .. } = self;
        let paint = |code: &str, text: String| match colour {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text,
        };
        let after = format!("{:>7}", format_seconds(step.at.since(started)));
        let level = paint(colour_of(step.level), format!("{:<16}", step.level.title()));
        let mut what = step.what.clone();
        if *more > 0 {
            let until = format_seconds(self.until.since(started));
            what += &format!(" (and {more} more like it until {until})");
        }
        let mut text = format!("{after}  {level}  {}\n", cut(&what, WIDTH - INDENT));
        if !step.because.is_empty() {
            let because = cut(&step.because, WIDTH - INDENT - 2);
            text += &format!("{:INDENT$}{}\n", "", paint("2", format!("↳ {because}")));
        }
        text
    }
}

/// SGR codes that read on dark and light backgrounds.
fn colour_of(level: Level) -> &'static str {
    match level {
        Level::Workload => "1",
        Level::Ray => "36",
        Level::Hpa => "35",
        Level::NodeAutoscaler => "1;32",
        Level::AutoScaling => "33",
        Level::Kubernetes => "34",
    }
}

/// Ends with an empty line.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => *line += &format!(" {word}"),
            _ => lines.push(format!(" {word}")),
        }
    }
    lines.join("\n") + "\n\n"
}

fn cut(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        None => text.to_owned(),
        Some(_) => text.chars().take(width - 1).chain(['…']).collect(),
    }
}

/// `▕████░░░░▏ 12m30s  queue 48  ray-cpu 12/24  cpu-workers 4/8 nodes …`, in one line's width.
fn status(scenario: &Scenario, run: &Run, snapshot: &Snapshot) -> String {
    const BAR: usize = 24;
    let passed = snapshot.now.since(run.started);
    let done = passed.as_millis() * BAR as u128 / scenario.duration.as_millis().max(1);
    let done = usize::try_from(done).unwrap_or(BAR).min(BAR);
    let queued: u32 = snapshot.ray.iter().map(|ray| ray.tasks_queued).sum();
    let mut text = format!("▕{}{}▏ {:>6}", "█".repeat(done), "░".repeat(BAR - done), format_duration(passed));
    text += &format!("  queue {queued:<3}");
    for ray in &snapshot.ray {
        text += &format!(" {} {}", ray.name, ray.workers);
    }
    for group in &snapshot.cluster.groups {
        let here = |node: &&ebb_core::view::Node| node.ready && node.group.as_ref() == Some(&group.name);
        let nodes = snapshot.cluster.nodes.iter().filter(here).count();
        let desired = group.desired.map_or("?".to_owned(), |desired| desired.to_string());
        text += &format!("  {} {nodes}/{desired} nodes", group.name);
    }
    cut(&text, WIDTH)
}
