//! `--record`: everything that came in and what was made of it, for `ebb replay`. A file that has grown to its bound
//! becomes FILE.1, in place of an earlier one, and the next begins with the fleet as it is: each can be played by itself.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, LineWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ebb_core::fleet::Fleet;
use ebb_core::journal::{Handled, Line};
use ebb_core::policy::Policy;
use ebb_core::time::Instant;

pub struct Record {
    path: PathBuf,
    /// `None`: writing has failed.
    file: Option<LineWriter<File>>,
    /// Bytes in the file, without the fleet at its beginning: a large one must not make each line a file.
    size: u64,
    max_size: u64,
}

impl Record {
    /// Appends: a restart must not cost the record of what led to it.
    pub fn open(path: &Path, max_size: u64, now: Instant, policy: &Policy) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        let mut record = Self { path: path.to_owned(), file: Some(LineWriter::new(file)), size, max_size };
        if size >= max_size {
            record.begin_anew()?;
        }
        record.append(&Line::start(now, policy))?;
        Ok(record)
    }

    /// What the fleet, which is as it is after that, has handled. A full disk must not stop it: that is said once, and
    /// things go on without.
    pub fn write(&mut self, handled: Handled, fleet: &Fleet) {
        if self.file.is_none() {
            return;
        }
        if let Err(error) = self.try_write(handled, fleet) {
            tracing::error!(%error, path = %self.path.display(), "recording stopped");
            self.file = None;
        }
    }

    fn try_write(&mut self, handled: Handled, fleet: &Fleet) -> io::Result<()> {
        let now = handled.now;
        self.append(&Line::Handled(handled))?;
        if self.size >= self.max_size {
            self.begin_anew()?;
            self.append(&Line::resumed(now, fleet))?;
            self.size = 0;
        }
        Ok(())
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        let mut former = OsString::from(&self.path);
        former.push(".1");
        fs::rename(&self.path, former)?;
        self.file = Some(LineWriter::new(open(&self.path)?));
        self.size = 0;
        Ok(())
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let text = line.to_line();
        self.size += text.len() as u64 + 1;
        writeln!(file, "{text}")
    }
}

/// For appending. A line in whose middle a crash came is ended, so that it harms no other.
fn open(path: &Path) -> io::Result<File> {
    let mut file = File::options().read(true).append(true).create(true).open(path)?;
    if file.seek(SeekFrom::End(0))? > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != [b'\n'] {
            file.write_all(b"\n")?;
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};
    use std::time::Duration;

    use ebb_core::fleet::{Action, Event, GroupState};
    use ebb_core::journal::{Played, Replay};
    use ebb_core::kubernetes::Pod;
    use ebb_core::policy::Group;
    use ebb_core::resources::Resources;

    use super::*;

    fn policy() -> Policy {
        let group = Group {
            min: 1,
            max: 50,
            instance_type: "m5.xlarge".into(),
            allocatable: Resources::from_texts([("cpu", "4"), ("pods", "10")]).unwrap(),
            unneeded_for: Duration::from_secs(600),
            ..Group::default()
        };
        Policy { groups: BTreeMap::from([("a".to_owned(), group)]), ..Policy::default() }
    }

    /// A fleet that leads, whose calls succeed, and for which another pod waits every ten seconds.
    struct Course {
        now: Instant,
        fleet: Fleet,
        coming: VecDeque<Event>,
        desired: u32,
        pods: u32,
    }

    impl Course {
        fn new(now: Instant) -> Self {
            let coming = VecDeque::from([Event::Leading(true), Event::Synced(true)]);
            Self { now, fleet: Fleet::new(policy()), coming, desired: 1, pods: 0 }
        }

        fn go_on(&mut self, record: &mut Record, steps: usize) {
            for _ in 0..steps {
                let event = self.coming.pop_front().unwrap_or_else(|| self.pod_comes());
                let actions = self.fleet.handle(self.now, event.clone());
                for action in &actions {
                    if let Action::SetDesired { to, .. } = action {
                        self.desired = *to;
                    }
                    let desired = self.desired;
                    let group = || GroupState { name: "a".into(), max: 50, desired, ..GroupState::default() };
                    self.coming.push_back(match action {
                        Action::Describe { .. } => Event::Groups { asked: action.clone(), groups: vec![group()] },
                        _ => Event::Done(action.clone()),
                    });
                }
                record.write(Handled { now: self.now, event, actions }, &self.fleet);
            }
        }

        fn pod_comes(&mut self) -> Event {
            self.now = self.now + Duration::from_secs(10);
            self.pods += 1;
            let requests = Resources::from_texts([("cpu", "3"), ("pods", "1")]).unwrap();
            let (uid, name) = (format!("u-{}", self.pods), format!("p-{}", self.pods));
            let unschedulable_since = Some(self.now);
            Event::PodApplied(Pod { uid, name, requests, unschedulable_since, ..Pod::default() })
        }
    }

    /// How many raises the file holds, of which each is decided again; and how often it begins.
    fn replayed(path: &Path) -> (usize, usize) {
        let (mut raises, mut starts) = (0, 0);
        let mut replay = Replay::new(None);
        for line in fs::read_to_string(path).unwrap().lines() {
            match replay.play(line).unwrap() {
                Played::Start(_) => starts += 1,
                Played::Torn => {}
                Played::Handled(compared) => {
                    assert!(!compared.differs(), "{compared:?}");
                    raises += compared.both.iter().filter(|it| matches!(it, Action::SetDesired { .. })).count();
                }
            }
        }
        (raises, starts)
    }

    #[test]
    fn each_file_is_bounded_and_plays_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let (path, former) = (folder.path().join("record"), folder.path().join("record.1"));
        let start = Instant::from_millis(1_795_489_200_000);
        let mut record = Record::open(&path, 40_000, start, &policy()).unwrap();
        let mut course = Course::new(start);
        while !former.exists() {
            course.go_on(&mut record, 1);
        }
        let (first, starts) = replayed(&former);
        assert!(first > 1 && starts == 1, "{first} {starts}");
        let first = fs::read_to_string(&former).unwrap();
        course.go_on(&mut record, 20);
        assert!(replayed(&path).0 > 1);
        while fs::read_to_string(&former).unwrap() == first {
            course.go_on(&mut record, 1);
        }
        assert!(replayed(&former).0 > 1);
        for path in [&path, &former] {
            let text = fs::read_to_string(path).unwrap();
            let fleet = text.lines().next().unwrap().len();
            assert!(text.len() - fleet < 50_000, "{} of which {fleet} the fleet's", text.len());
        }
    }

    #[test]
    fn a_restart_after_a_crash_within_a_line_begins_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let start = Instant::from_millis(1_795_489_200_000);
        for _ in 0..2 {
            let mut record = Record::open(&path, 1 << 20, start, &policy()).unwrap();
            Course::new(start).go_on(&mut record, 30);
            drop(record);
            File::options().append(true).open(&path).unwrap().write_all(b"{\"handled\":{\"now\":\"20").unwrap();
        }
        let (raises, starts) = replayed(&path);
        assert!(raises > 1 && starts == 2, "{raises} {starts}");
    }

    #[test]
    fn a_file_that_is_full_already_is_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        fs::write(&path, "x".repeat(100)).unwrap();
        Record::open(&path, 50, Instant::from_millis(0), &policy()).unwrap();
        assert_eq!(replayed(&path), (0, 1));
        assert_eq!(fs::read_to_string(folder.path().join("record.1")).unwrap().trim_end().len(), 100);
    }
}
