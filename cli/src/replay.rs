//! `ebb replay`: a coordinator's record decided again, by the rules as they are now or under other settings.

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ebb_config::Overrides;
use ebb_core::decision::Decision;
use ebb_core::fleet::{Action, Failure, steps};
use ebb_core::journal::{Compared, Played, Replay, Start};
use ebb_core::time::Instant;
use serde::Serialize;

use crate::lines::{Output, write_json};
use crate::sheet::Sheet;
use crate::text::{count, moment};
use crate::{input, terminal};

/// Decides a coordinator's record again, made by `ebb-coordinator --record`, and shows what was decided and why.
///
/// What is decided otherwise now is shown beside what was decided then, and the exit code is 1: the rules have changed.
/// With --policy that is what is asked for: what would other settings have decided? Each time the cluster is as it was
/// recorded, so that one difference leads to no other; and things are looked at when something was recorded, every few
/// seconds on a cluster with agents.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The record; `-`: the standard input.
    recording: PathBuf,
    /// A coordinator's configuration, in place of what was recorded.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// `table`: each decision and a summary; `json`: the same, one object a line.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let policy = match &args.policy {
        Some(path) => Some(ebb_config::read(path, &Overrides::default())?),
        None => None,
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut table =
        Table { sheet: Sheet::new(terminal::columns().into(), terminal::takes_colours()), date: String::new() };
    let mut show = |entry: Entry| match args.output {
        Output::Table => write!(out, "{}", table.text(&entry)).context("print an entry"),
        Output::Json => write_json(&mut out, &entry),
    };
    let summary = replay(input::open(&args.recording)?, &args.recording, Replay::new(policy), &mut show)?;
    show(Entry::Summary(summary))?;
    out.flush().context("print to the end")?;
    if summary.differences > 0 && args.policy.is_none() {
        let lines = count(summary.differences, "line");
        bail!("{} is no longer decided as it was recorded, in {lines}", args.recording.display());
    }
    Ok(())
}

/// One line of the record of which there is something to say.
#[derive(Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Entry {
    Start {
        line: usize,
        at: Instant,
        version: String,
        groups: usize,
        /// It goes on with a fleet of an earlier file.
        resumed: bool,
    },
    Decided {
        line: usize,
        at: Instant,
        /// Then and now.
        decisions: Vec<Decision>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        only_then: Vec<Action>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        only_now: Vec<Action>,
    },
    /// It became known that a call had failed.
    Failed {
        line: usize,
        at: Instant,
        action: Action,
        failure: Failure,
    },
    /// The line ends in the middle.
    Torn {
        line: usize,
    },
    Summary(Summary),
}

#[derive(Clone, Copy, Default, Serialize)]
struct Summary {
    events: usize,
    /// Of now.
    decisions: usize,
    /// Lines that are decided otherwise now.
    differences: usize,
}

fn replay(
    mut recording: impl BufRead,
    path: &Path,
    mut replay: Replay,
    show: &mut dyn FnMut(Entry) -> Result<()>,
) -> Result<Summary> {
    let mut summary = Summary::default();
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        if recording.read_until(b'\n', &mut text).with_context(|| format!("read {}", path.display()))? == 0 {
            break;
        }
        // What is no text is no JSON either, and refused as such.
        let text = String::from_utf8_lossy(&text);
        if text.trim().is_empty() {
            continue;
        }
        let played = replay.play(&text).with_context(|| format!("understand line {line} of {}", path.display()))?;
        match played {
            Played::Start(start) => {
                let Start { version, at, policy, fleet, .. } = start;
                let (groups, resumed) = (policy.groups.len(), fleet.is_some());
                show(Entry::Start { line, at, version, groups, resumed })?;
            }
            Played::Torn => show(Entry::Torn { line })?,
            Played::Handled(compared) => {
                summary.events += 1;
                let decided = compared.both.iter().chain(&compared.only_now);
                summary.decisions += decided.filter(|action| action.because().is_some()).count();
                summary.differences += usize::from(compared.differs());
                let Compared { now: at, failed, both, only_then, only_now } = compared;
                if let Some((action, failure)) = failed {
                    show(Entry::Failed { line, at, action, failure })?;
                }
                let decisions: Vec<_> = both.iter().filter_map(|action| Decision::new(at, action)).collect();
                if !(decisions.is_empty() && only_then.is_empty() && only_now.is_empty()) {
                    show(Entry::Decided { line, at, decisions, only_then, only_now })?;
                }
            }
        }
    }
    if summary.events == 0 {
        bail!("find an event in {}: a coordinator's record is expected, made with --record", path.display());
    }
    Ok(summary)
}

struct Table {
    sheet: Sheet,
    /// Of what was printed last.
    date: String,
}

impl Table {
    fn text(&mut self, entry: &Entry) -> String {
        match entry {
            Entry::Start { at, version, groups, resumed, .. } => {
                let when = self.when(*at);
                let begins = if *resumed { "The record goes on" } else { "A coordinator starts" };
                let other = env!("CARGO_PKG_VERSION");
                let other = if version == other {
                    String::new()
                } else {
                    format!("; this is Ebb {other}, whose rules may differ")
                };
                let groups = count(*groups, "group");
                self.sheet.labelled(&when, &format!("{begins}: Ebb {version}, {groups}{other}"));
            }
            Entry::Decided { line, at, decisions, only_then, only_now } => {
                let when = self.when(*at);
                let actions: Vec<_> = decisions.iter().map(|decision| decision.action.clone()).collect();
                for step in steps(*at, &actions) {
                    self.sheet.step(&when, &step.what, &step.because);
                }
                if !(only_then.is_empty() && only_now.is_empty()) {
                    self.sheet.labelled(&when, &format!("line {line} is decided otherwise:"));
                    self.marked("-", *at, only_then, only_now);
                    self.marked("+", *at, only_now, only_then);
                }
            }
            Entry::Failed { at, action, failure, .. } => {
                let when = self.when(*at);
                self.sheet.labelled(&when, &format!("failed, {}: {}", failure.name(), action.describe()));
            }
            Entry::Torn { line } => {
                let why = "it ends in the middle, as a crash leaves it";
                self.sheet.line(&format!("Line {line} is passed over: {why}."));
            }
            Entry::Summary(Summary { events, decisions, differences }) => {
                let otherwise = match differences {
                    0 => "nothing is decided otherwise than it was.".to_owned(),
                    _ => format!("{} decided otherwise (- then, + now).", count(*differences, "line")),
                };
                let (events, decisions) = (count(*events, "event"), count(*decisions, "decision"));
                return format!("\n{events}, {decisions}: {otherwise}\n");
            }
        }
        self.sheet.take()
    }

    /// The time of the day, after a new day's date.
    fn when(&mut self, at: Instant) -> String {
        let moment = moment(at);
        let (date, time) = moment.split_once('T').unwrap_or_default();
        if self.date != date {
            self.sheet.title(date);
            date.clone_into(&mut self.date);
        }
        time.to_owned()
    }

    /// Two that read alike differ in what people are not told: then all of it is shown.
    fn marked(&mut self, mark: &str, at: Instant, actions: &[Action], others: &[Action]) {
        let mark = format!("{mark:>9}");
        let words = |action: &Action| (action.describe(), action.because().map(ToString::to_string));
        let (alike, told): (Vec<_>, Vec<_>) =
            actions.iter().cloned().partition(|action| others.iter().any(|other| words(other) == words(action)));
        for step in steps(at, &told) {
            self.sheet.step(&mark, &step.what, &step.because);
        }
        for action in told.iter().filter(|action| action.because().is_none()) {
            self.sheet.step(&mark, &action.describe(), "");
        }
        for action in alike {
            let whole = serde_json::to_string(&action).expect("an action always serialises");
            self.sheet.labelled(&mark, &whole);
        }
    }
}
