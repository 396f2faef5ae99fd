//! Writes the log to standard error: a bounded queue, and a thread that empties it. Logging never blocks: while standard error is
//! not read and the queue is full, lines are lost and counted. When it is read again, one line says how many.
//!
//! Not `tracing-appender`, because that bounds lines and not bytes, logs nothing about what it dropped, and reports a failed shutdown
//! on standard output, which may be stuck, too.

use std::{
    io::{self, Write},
    mem, thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use prometheus::IntCounter;

/// Bytes that wait to be written, some 4,000 lines; as much again may be in the thread's hands. A line that does not fit is lost.
pub(super) const QUEUE_BYTES_MAX: usize = 1 << 20;
/// A buffer that has grown beyond this is freed.
const BUFFER_BYTES_KEPT: usize = 64 << 10;
/// How long to wait for a standard error that another process has made non-blocking, and that takes nothing now.
const PAUSE: Duration = Duration::from_millis(10);

/// The queue; [`LogWriter::run`] is its thread.
pub(super) struct LogWriter {
    state: Mutex<State>,
    /// Signals that there are lines, or that some were written.
    changed: Condvar,
}

/// What the queue holds, counted in lines.
struct State {
    /// Whole lines.
    text: Vec<u8>,
    lines: u64,
    /// Lines taken into the queue since the start.
    pushed: u64,
    /// Lines of these that were written or lost.
    done: u64,
    /// Lines that were lost because the queue was full, and not reported yet.
    unreported: u64,
    /// All lines that were lost, until there is a counter.
    uncounted: u64,
    counter: Option<IntCounter>,
}

impl LogWriter {
    pub(super) const fn new() -> Self {
        let state = State {
            text: Vec::new(),
            lines: 0,
            pushed: 0,
            done: 0,
            unreported: 0,
            uncounted: 0,
            counter: None,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Queues a line, which includes its line end, or loses it. Never waits for standard error.
    pub(super) fn push(&self, priority: &str, line: &[u8]) {
        let mut state = self.lock();
        if state.text.len() + priority.len() + line.len() > QUEUE_BYTES_MAX {
            state.unreported += 1;
            return state.lose(1);
        }
        state.take(priority, line);
        self.changed.notify_all();
    }

    /// Queues the last words of the process, however full the queue is.
    pub(super) fn push_at_any_rate(&self, priority: &str, line: &[u8]) {
        self.lock().take(priority, line);
        self.changed.notify_all();
    }

    /// Waits until everything that was pushed before is written, or until the timeout. Returns whether it is.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let mut state = self.lock();
        let pushed = state.pushed;
        let is_unfinished = |state: &mut State| state.done < pushed;
        let waited = self
            .changed
            .wait_while_for(&mut state, is_unfinished, timeout);
        !waited.timed_out()
    }

    /// Counts lost lines in this counter, also those that were lost before.
    pub(super) fn count_lost_in(&self, counter: IntCounter) {
        let mut state = self.lock();
        counter.inc_by(mem::take(&mut state.uncounted));
        state.counter = Some(counter);
    }

    /// Writes what is pushed to `out`, for ever. `report` logs how many lines were lost before those that follow.
    pub(super) fn run(&self, mut out: impl Write, report: impl Fn(u64)) {
        let mut batch = Vec::new();
        // Lines that could not be written. They are reported when others can be: reporting at once would only lose one more.
        let mut failed = 0;
        let mut is_whole = true;
        let mut works = true;
        loop {
            let (lines, lost) = self.next(&mut batch);
            failed += lost;
            if works && failed > 0 {
                // The queue is empty now, so this stands where the lost lines would.
                report(mem::take(&mut failed));
            }

            // A line that was torn by an error must not run into the next one.
            let written = if is_whole {
                Ok(())
            } else {
                write_all(&mut out, b"\n").map_err(|(error, _)| (error, 0))
            };
            let written = written.and_then(|()| write_all(&mut out, &batch));
            works = written.is_ok();
            if let Err((_, count)) = written {
                is_whole = if count == 0 {
                    is_whole
                } else {
                    batch[count - 1] == b'\n'
                };
                failed += lines;
            } else {
                is_whole = true;
            }

            let mut state = self.lock();
            state.done += lines;
            if !works {
                state.lose(lines);
            }
            drop(state);
            self.changed.notify_all();
            if batch.capacity() > BUFFER_BYTES_KEPT {
                batch = Vec::new();
            }
        }
    }

    /// Waits for lines, and moves all there are into `batch`. Returns how many, and how many were lost since the last batch.
    fn next(&self, batch: &mut Vec<u8>) -> (u64, u64) {
        batch.clear();
        let empty = |state: &mut State| state.text.is_empty();
        let mut state = self.lock();
        self.changed.wait_while(&mut state, empty);
        mem::swap(&mut state.text, batch);
        (
            mem::take(&mut state.lines),
            mem::take(&mut state.unreported),
        )
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn take(&mut self, priority: &str, line: &[u8]) {
        self.text.extend_from_slice(priority.as_bytes());
        self.text.extend_from_slice(line);
        self.lines += 1;
        self.pushed += 1;
    }

    fn lose(&mut self, lines: u64) {
        match &self.counter {
            Some(counter) => counter.inc_by(lines),
            None => self.uncounted += lines,
        }
    }
}

/// Like `Write::write_all`, but waits when the output would block. An error comes with how many bytes were written before it.
fn write_all(out: &mut impl Write, bytes: &[u8]) -> Result<(), (io::Error, usize)> {
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => return Err((io::ErrorKind::WriteZero.into(), written)),
            Ok(count) => written += count,
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
                _ => return Err((error, written)),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A standard error that takes a write only when the test says how it ends.
    struct Gate {
        arrived: mpsc::Sender<String>,
        ends: mpsc::Receiver<io::Result<usize>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.arrived
                .send(String::from_utf8(bytes.to_vec()).unwrap())
                .unwrap();
            self.ends.recv().unwrap_or_else(|_| {
                loop {
                    thread::park();
                }
            })
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Stepped {
        writer: Arc<LogWriter>,
        counter: IntCounter,
        arrived: mpsc::Receiver<String>,
        ends: mpsc::Sender<io::Result<usize>>,
    }

    impl Stepped {
        fn new() -> Self {
            let writer = Arc::new(LogWriter::new());
            let ((arriving, arrived), (ends, ending)) = (mpsc::channel(), mpsc::channel());
            let running = Arc::clone(&writer);
            thread::spawn(move || {
                let tell = |lost| running.push("", format!("lost {lost}\n").as_bytes());
                running.run(
                    Gate {
                        arrived: arriving,
                        ends: ending,
                    },
                    tell,
                );
            });
            let counter = IntCounter::new("lost", "for the test").unwrap();
            Self {
                writer,
                counter,
                arrived,
                ends,
            }
        }

        /// What the writer is about to write.
        fn writes(&self) -> String {
            self.arrived.recv_timeout(PATIENCE).unwrap()
        }

        /// Lets a write take everything.
        fn takes(&self, text: &str) {
            self.ends.send(Ok(text.len())).unwrap();
        }

        fn fails(&self) {
            self.ends
                .send(Err(io::ErrorKind::BrokenPipe.into()))
                .unwrap();
        }
    }

    #[test]
    fn while_standard_error_is_stuck_lines_are_queued_up_to_the_limit_and_then_lost_counted_and_reported()
     {
        let stepped = Stepped::new();
        stepped.writer.push("<6>", b"first\n");
        assert_eq!(stepped.writes(), "<6>first\n");

        // Stuck in the first write: the queue takes exactly its limit, in whole lines.
        let line = vec![b'x'; 1023]
            .into_iter()
            .chain([b'\n'])
            .collect::<Vec<_>>();
        for _ in 0..QUEUE_BYTES_MAX / line.len() {
            stepped.writer.push("", &line);
        }
        stepped.writer.count_lost_in(stepped.counter.clone());
        assert_eq!(stepped.counter.get(), 0);
        stepped.writer.push("", b"x");
        stepped.writer.push("", b"y");
        assert_eq!(stepped.counter.get(), 2);
        assert!(
            !stepped.writer.flush(Duration::from_millis(10)),
            "it must not wait for ever"
        );

        stepped.takes("<6>first\n");
        let batch = stepped.writes();
        assert_eq!(batch.len(), QUEUE_BYTES_MAX);
        stepped.writer.push("", b"later\n");
        stepped.takes(&batch);
        assert_eq!(
            stepped.writes(),
            "lost 2\nlater\n",
            "where they would have stood"
        );
        stepped.takes("lost 2\nlater\n");
        assert!(stepped.writer.flush(PATIENCE));
        stepped.writer.push("", b"well\n");
        assert_eq!(stepped.writes(), "well\n", "it is told once");
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_reported_when_others_can() {
        let stepped = Stepped::new();
        stepped.writer.push("", b"a\n");
        assert_eq!(stepped.writes(), "a\n");
        stepped.fails();
        assert!(
            stepped.writer.flush(PATIENCE),
            "what is lost is not waited for"
        );
        stepped.writer.count_lost_in(stepped.counter.clone());
        assert_eq!(
            stepped.counter.get(),
            1,
            "also what was lost before there was a counter"
        );

        stepped.writer.push("", b"b\n");
        assert_eq!(stepped.writes(), "b\n", "telling would only be lost, too");
        stepped.takes("b\n");
        assert!(stepped.writer.flush(PATIENCE));
        stepped.writer.push("", b"c\n");
        assert_eq!(stepped.writes(), "c\n");
        stepped.takes("c\n");
        assert_eq!(stepped.writes(), "lost 1\n");
    }

    #[test]
    fn a_line_that_was_torn_does_not_run_into_the_next() {
        let stepped = Stepped::new();
        stepped.writer.push("", b"torn\n");
        assert_eq!(stepped.writes(), "torn\n");
        stepped.takes("to");
        assert_eq!(stepped.writes(), "rn\n");
        stepped.fails();
        assert!(stepped.writer.flush(PATIENCE));
        stepped.writer.push("", b"next\n");
        assert_eq!(stepped.writes(), "\n");
        stepped.takes("\n");
        assert_eq!(stepped.writes(), "next\n");
    }

    #[test]
    fn a_standard_error_that_would_block_is_waited_for() {
        let stepped = Stepped::new();
        stepped.writer.push("", b"line\n");
        assert_eq!(stepped.writes(), "line\n");
        stepped
            .ends
            .send(Err(io::ErrorKind::WouldBlock.into()))
            .unwrap();
        assert_eq!(stepped.writes(), "line\n");
        stepped.takes("line\n");
        assert!(stepped.writer.flush(PATIENCE));
    }

    #[test]
    fn the_last_words_are_taken_although_the_queue_is_full() {
        let stepped = Stepped::new();
        stepped.writer.push("", b"first\n");
        assert_eq!(stepped.writes(), "first\n");
        stepped.writer.push("", &vec![b'x'; QUEUE_BYTES_MAX]);
        stepped.writer.push_at_any_rate("<3>", b"last words\n");
        stepped.takes("first\n");
        assert!(stepped.writes().ends_with("x<3>last words\n"));
    }
}
