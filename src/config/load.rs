//! From the layers to a checked configuration.

use super::{
    check::check,
    layers::{Layers, Sources},
    problem::ConfigErrors,
    settings::{Config, Logging},
};

/// Puts the layers over one another and checks the outcome; the error holds every problem found, not just the first.
pub fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
    let mut layers = Layers::of(sources);
    let config = layers.config();
    check(&config, &mut layers);

    match layers.into_problems() {
        problems if problems.is_empty() => Ok(config),
        problems => Err(ConfigErrors { problems }),
    }
}

/// How to log that a configuration is refused: as the configuration itself says, as far as that can be read.
pub fn logging(sources: &Sources) -> Logging {
    Layers::of(sources).config().logging
}
