//! Loads a configuration: merges the layers and checks the result.

use super::{
    check::check,
    layers::{ConfigSources, Layers},
    problem::ConfigErrors,
    settings::{Config, Logging},
};

/// Merges the layers and checks the result. The error holds every problem, not just the first.
pub fn load(sources: &ConfigSources) -> Result<Config, ConfigErrors> {
    let mut layers = Layers::of(sources);
    let config = layers.config();
    check(&config, &mut layers);

    match layers.into_problems() {
        problems if problems.is_empty() => Ok(config),
        problems => Err(ConfigErrors { problems }),
    }
}

/// How to log that a configuration is refused: by its own `[logging]`, as far as that can be read.
pub(crate) fn logging(sources: &ConfigSources) -> Logging {
    Layers::of(sources).config().logging
}
