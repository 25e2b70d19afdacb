//! Server-sent events out of the bytes of a stream.

/// Bytes of one event: the first of a vLLM stream repeats the prompt's ids.
pub(super) const EVENT_BYTES_MAX: usize = 16 << 20;

/// Bytes that are no whole line yet.
#[derive(Debug, Default)]
pub(super) struct Events {
    pending: Vec<u8>,
}

impl Events {
    /// Takes the next bytes and returns the data of the events they complete. Only `data` lines
    /// matter, and these servers put all data of an event on one line.
    ///
    /// # Errors
    /// A line that is too long, or not UTF-8.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, &'static str> {
        let mut data = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.pending.len() + piece.len() > EVENT_BYTES_MAX {
                return Err("an event of the stream is too long");
            }
            self.pending.extend_from_slice(piece);
            if !piece.ends_with(b"\n") {
                break;
            }
            let line = std::mem::take(&mut self.pending);
            let line = str::from_utf8(&line).map_err(|_| "the stream is not UTF-8")?;
            let line = line.trim_end_matches(['\n', '\r']);
            if let Some(rest) = line.strip_prefix("data:") {
                data.push(rest.strip_prefix(' ').unwrap_or(rest).to_owned());
            }
        }
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_do_not_depend_on_how_the_bytes_were_cut() {
        let stream = ": hello\r\ndata: {\"a\": \"\u{e9}\"}\r\n\r\nevent: x\ndata:[DONE]\n\n";
        let expected = ["{\"a\": \"\u{e9}\"}", "[DONE]"];
        for size in 1..stream.len() {
            let mut events = Events::default();
            let pieces = stream.as_bytes().chunks(size);
            let data: Vec<String> =
                pieces.flat_map(|piece| events.push(piece).expect("events")).collect();
            assert_eq!(data, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_stream_of_events_is_refused() {
        assert!(Events::default().push(&vec![b'a'; EVENT_BYTES_MAX + 1]).is_err());
        assert!(Events::default().push(b"data: \xff\n").is_err());
    }
}
