//! A recording ([`ebb_core::recording`]) in place of the host's readings, for tests of everything behind the sampler.
//! Read line by line as time goes on: a recording of weeks takes no more memory than one of a minute.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ebb_core::classify::Utilization;
use ebb_core::recording::Entry;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the recording {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("understand line {line} of {}", path.display())]
    Line { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("find a reading in {}: a line for each is expected", path.display())]
    Empty { path: PathBuf },
}

#[derive(Debug)]
pub struct Replay {
    lines: Lines,
    /// What goes on now, and until when since the beginning.
    current: (Duration, Utilization),
    interval: Duration,
    ended: bool,
}

#[derive(Debug)]
struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    number: usize,
    /// Shared by all lines.
    line: String,
}

impl Replay {
    /// Checks the whole file before anything starts.
    pub fn open(path: &Path, interval: Duration) -> Result<Self, Error> {
        let failed = |source| Error::Read { path: path.to_owned(), source };
        let file = BufReader::new(File::open(path).map_err(failed)?);
        let mut lines = Lines { path: path.to_owned(), file, number: 0, line: String::new() };
        while lines.next()?.is_some() {}
        lines.file.rewind().map_err(failed)?;
        lines.number = 0;
        let first = lines.next()?.ok_or_else(|| Error::Empty { path: path.to_owned() })?;
        let current = (first.lasts.unwrap_or(interval), first.utilization);
        Ok(Self { lines, current, interval, ended: false })
    }

    /// What went on after this time, which never goes back. The last line goes on for ever.
    pub fn at(&mut self, elapsed: Duration) -> Result<Utilization, Error> {
        while elapsed >= self.current.0 && !self.ended {
            match self.lines.next()? {
                Some(next) => self.current = (self.current.0 + next.lasts.unwrap_or(self.interval), next.utilization),
                None => self.ended = true,
            }
        }
        Ok(self.current.1)
    }
}

impl Lines {
    fn next(&mut self) -> Result<Option<Entry>, Error> {
        loop {
            self.line.clear();
            let read = self.file.read_line(&mut self.line);
            if read.map_err(|source| Error::Read { path: self.path.clone(), source })? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if let Some(entry) = Entry::parse(&self.line) {
                let line = self.number;
                return entry.map(Some).map_err(|source| Error::Line { path: self.path.clone(), line, source });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<Replay, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Replay::open(file.path(), Duration::from_secs(1))
    }

    #[test]
    fn each_line_lasts_as_long_as_it_says_and_the_last_for_ever() {
        let mut replay = open(
            "{\"for\": \"10s\", \"utilization\": {\"cpu\": 900, \"gpu\": \"absent\"}}\n\n\
             {\"utilization\": {\"cpu\": 500, \"gpu\": {\"busy\": 30}}}\n\
             {\"utilization\": {\"gpu\": \"unknown\"}}\n",
        )
        .unwrap();
        let mut check = |millis, cpu: Option<u16>| {
            let found = replay.at(Duration::from_millis(millis)).unwrap();
            assert_eq!(found.cpu.map(|cpu| cpu.get()), cpu, "{millis}");
        };
        check(0, Some(900));
        check(9_999, Some(900));
        check(10_000, Some(500));
        check(11_000, None);
        check(1_000_000, None);
    }

    #[test]
    fn a_pause_skips_the_lines_that_passed_meanwhile() {
        let line = |cpu| format!("{{\"utilization\": {{\"cpu\": {cpu}, \"gpu\": \"absent\"}}}}\n");
        let mut replay = open(&(0..100).map(line).collect::<String>()).unwrap();
        let cpu = replay.at(Duration::from_millis(57_500)).unwrap().cpu;
        assert_eq!(cpu.map(|cpu| cpu.get()), Some(57));
    }

    #[test]
    fn a_broken_recording_is_refused_with_its_line() {
        let check = |text, expected: &str| {
            let error = open(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        check("", "find a reading");
        check("{\"utilization\": {\"gpu\": \"absent\"}}\n\n{}\n", "understand line 3");
        check("{\"utilization\": {\"gpu\": \"absent\", \"cpu\": 1001}}", "understand line 1");
        check("{\"utilization\": {\"gpu\": \"absent\"}, \"for\": \"soon\"}", "understand line 1");
        // Three of these would overflow a sum.
        check("{\"utilization\": {\"gpu\": \"absent\"}, \"for\": \"2562047788015215h\"}", "understand line 1");
    }
}
