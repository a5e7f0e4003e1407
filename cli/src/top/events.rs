//! Server-sent events (WHATWG HTML, 9.2.6), as far as the coordinator uses them: data, and comments that keep the
//! connection.

/// An event that is not finished by then is no event of ours. A whole of 1000 nodes with 30 pods each is about 4 MiB.
const LONGEST: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
#[error("an event of more than {} MiB", LONGEST >> 20)]
pub(super) struct TooLong;

#[derive(Debug, Default)]
pub(super) struct Events {
    /// Of a line that has not ended.
    line: Vec<u8>,
    /// Of an event that has not ended.
    data: String,
}

impl Events {
    /// The data of all events that end within these bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        let mut ended = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() + self.data.len() > LONGEST {
                return Err(TooLong);
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                ended.extend(self.end_line(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n'])));
            }
        }
        Ok(ended)
    }

    fn end_line(&mut self, line: &str) -> Option<String> {
        if line.is_empty() {
            return Some(std::mem::take(&mut self.data)).filter(|data| !data.is_empty());
        }
        if let Some(data) = line.strip_prefix("data:") {
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = "retry: 1000\ndata: {\"a\": 1}\n\n: here\n\ndata: 2\r\ndata: 3\r\n\r\ndata: unfinished\n";

    #[test]
    fn data_comes_when_its_event_ends() {
        assert_eq!(Events::default().push(STREAM.as_bytes()).unwrap(), ["{\"a\": 1}", "2\n3"]);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_bytes_arrive(cuts in proptest::collection::vec(0..STREAM.len(), 0..8)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let mut events = Events::default();
            let mut all = Vec::new();
            for cut in cuts.windows(2) {
                all.extend(events.push(&STREAM.as_bytes()[cut[0]..cut[1]]).unwrap());
            }
            prop_assert_eq!(all, ["{\"a\": 1}", "2\n3"]);
        }
    }
}
