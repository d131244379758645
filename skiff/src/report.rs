//! Progress, a line a step with the time it took, to a terminal or to the process that waits in front of it.

use std::io::{self, Write};

use tokio::time::Instant;

/// Where progress goes.
pub struct Report {
    out: Box<dyn Write + Send>,
    /// When the step that is under way began.
    step: Instant,
}

impl Report {
    /// To `out`.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        Self { out: Box::new(out), step: Instant::now() }
    }

    /// To standard output.
    pub fn stdout() -> Self {
        Self::new(io::stdout())
    }

    /// A step is done.
    pub fn done(&mut self, what: &str) {
        let took = self.step.elapsed();
        self.line(&format!("{:>8.3} s  {what}", took.as_secs_f64()));
        self.step = Instant::now();
    }

    /// Something that isn't a step.
    pub fn line(&mut self, text: &str) {
        // Nobody may be listening any more, which is no reason to stop.
        let _ = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
    }
}
