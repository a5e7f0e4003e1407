//! A file of `/proc` or a cgroup that is read again and again: opened once, read from its start each time.
//! A kernel file is made anew by a read at offset 0; opening it each time costs more than reading it. What is read seldom
//! is not held open all the same: the kernel keeps a page of memory for each open file that was read, in our name.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

use super::{Error, Malformed, READ, open};

/// The longest file that is read. `/proc/stat` holds a number per interrupt line and CPU; this is many times more than
/// the largest machines show.
const LONGEST: usize = 4 << 20;

/// Many times as long as any file of a cgroup that is read.
const PIECE: usize = 16 << 10;

#[derive(Debug)]
pub struct Polled {
    path: PathBuf,
    file: Option<File>,
}

impl Polled {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), file: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the whole file into `buffer`, which callers share to save memory, and parses it. After a failure the file
    /// is opened anew next time.
    pub fn read<T>(
        &mut self,
        buffer: &mut Vec<u8>,
        parse: impl FnOnce(&str) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        let read = match self.fill(buffer) {
            Ok(()) => str::from_utf8(buffer)
                .map_err(|_| Malformed("UTF-8"))
                .and_then(parse)
                .map_err(|malformed| Error::Malformed { path: self.path.clone(), malformed }),
            Err(source) => Err(Error::Read { path: self.path.clone(), source }),
        };
        if read.is_err() {
            self.file = None;
        }
        read
    }

    fn fill(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(open(&self.path)?),
        };
        buffer.resize(buffer.capacity().max(4096), 0);
        let mut length = 0;
        loop {
            if length == buffer.len() {
                if length >= LONGEST {
                    return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than any such file should be"));
                }
                buffer.resize(length * 2, 0);
            }
            match file.read_at(&mut buffer[length..], length as u64) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(length);
        Ok(())
    }
}

/// Reads a file of a cgroup's open folder once and parses it. The kernel gives such a file in one piece.
pub(super) fn read_once<T>(
    folder: &File,
    path: &Path,
    name: &'static str,
    buffer: &mut Vec<u8>,
    parse: impl FnOnce(&str) -> Result<T, Malformed>,
) -> Result<T, Error> {
    // Not cut back after it was used, so that only the first of many files pays for clearing it.
    if buffer.len() < PIECE {
        buffer.resize(PIECE, 0);
    }
    let file = rustix::fs::openat(folder, name, READ, Mode::empty()).map_err(io::Error::from);
    let length = file.and_then(|file| File::from(file).read(buffer));
    let length = length.map_err(|source| Error::Read { path: path.join(name), source })?;
    let parsed = str::from_utf8(&buffer[..length]).map_err(|_| Malformed("UTF-8")).and_then(parse);
    parsed.map_err(|malformed| Error::Malformed { path: path.join(name), malformed })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use rustix::fs::{CWD, mkfifoat};

    use super::*;

    fn text(polled: &mut Polled) -> Result<String, Error> {
        polled.read(&mut Vec::new(), |text| Ok(text.to_owned()))
    }

    #[test]
    fn each_read_sees_the_whole_file_as_it_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let mut polled = Polled::new(dir.path().join("stat"));
        assert_eq!(text(&mut polled).unwrap_err().kind(), "missing");
        for content in ["first", &"a longer one ".repeat(2000), ""] {
            std::fs::write(polled.path(), content).unwrap();
            assert_eq!(text(&mut polled).unwrap(), content);
        }
        std::fs::write(polled.path(), [0xff, 0xfe]).unwrap();
        assert_eq!(text(&mut polled).unwrap_err().kind(), "malformed");
        std::fs::remove_file(polled.path()).unwrap();
        std::fs::write(polled.path(), "another file").unwrap();
        assert_eq!(text(&mut polled).unwrap(), "another file", "what held nonsense is not held on to");
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            let dir = tempfile::tempdir().unwrap();
            let mut polled = Polled::new(dir.path().join("stat"));
            mkfifoat(CWD, polled.path(), Mode::RWXU).unwrap();
            let folder = File::open(dir.path()).unwrap();
            let once = || read_once(&folder, dir.path(), "stat", &mut Vec::new(), |text| Ok(text.to_owned()));
            assert_eq!(text(&mut polled).unwrap_err().kind(), "read");
            assert_eq!(once().unwrap(), "");
            let silent_writer = File::options().read(true).write(true).open(polled.path()).unwrap();
            assert_eq!(text(&mut polled).unwrap_err().kind(), "read");
            assert_eq!(once().unwrap_err().kind(), "read");
            drop(silent_writer);
            std::fs::remove_file(polled.path()).unwrap();
            std::fs::write(polled.path(), "a file again").unwrap();
            assert_eq!(text(&mut polled).unwrap(), "a file again");
            done.send(()).unwrap();
        });
        is_done.recv_timeout(Duration::from_secs(10)).expect("a pipe was waited for, or the thread has said why");
    }
}
