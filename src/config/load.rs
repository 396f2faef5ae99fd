//! Loads a configuration: merges the layers and checks the result.

use super::{
    check::check,
    described::Settings,
    layers::{ConfigSources, Layers},
    problem::ConfigErrors,
    settings::{Config, Logging},
};

/// A configuration, and where each of its values comes from.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// The values.
    pub config: Config,
    /// The same as they are written.
    pub settings: Settings,
}

/// Merges the layers and checks the result. The error holds every problem, not just the first.
pub fn load(sources: &ConfigSources) -> Result<Config, ConfigErrors> {
    load_described(sources).map(|loaded| loaded.config)
}

/// The same, with the origin of each value.
pub(crate) fn load_described(sources: &ConfigSources) -> Result<Loaded, ConfigErrors> {
    let mut layers = Layers::of(sources);
    let config = layers.config();
    check(&config, &mut layers);

    let settings = Settings::of(&layers);
    match layers.into_problems() {
        problems if problems.is_empty() => Ok(Loaded { config, settings }),
        problems => Err(ConfigErrors { problems }),
    }
}

/// How to log that a configuration is refused: by its own `[logging]`, as far as that can be read.
pub(crate) fn logging(sources: &ConfigSources) -> Logging {
    Layers::of(sources).config().logging
}
