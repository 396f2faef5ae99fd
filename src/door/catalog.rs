//! The RPCs by their names. Made of the descriptors that reflection serves, on the first use.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, FileDescriptor, MessageDescriptor};

use crate::wire::DESCRIPTOR_SET;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(DESCRIPTOR_SET)
        .expect("the descriptor set is our own, made at build time")
});

static RPCS: LazyLock<Vec<Rpc>> = LazyLock::new(|| {
    let methods = POOL.services().flat_map(|service| {
        let methods: Vec<_> = service.methods().collect();
        methods
    });
    methods
        .map(|method| Rpc {
            path: format!("/{}/{}", method.parent_service().full_name(), method.name()),
            name: method.name().to_owned(),
            comment: comment(&method.parent_file(), method.path()),
            is_unary: !method.is_client_streaming() && !method.is_server_streaming(),
            input: method.input(),
            output: method.output(),
        })
        .collect()
});

/// One RPC. No two have the same name, whatever their services.
#[derive(Debug)]
pub(crate) struct Rpc {
    /// Without the service.
    pub name: String,
    /// Of a gRPC request.
    pub path: String,
    /// As in the protos.
    pub comment: String,
    pub is_unary: bool,
    pub input: MessageDescriptor,
    pub output: MessageDescriptor,
}

impl Rpc {
    pub(super) fn all() -> &'static [Self] {
        &RPCS
    }

    pub(super) fn find(name: &str) -> Option<&'static Self> {
        Self::all().iter().find(|rpc| rpc.name == name)
    }

    /// The RPC with a name that is written in this source.
    pub(super) fn named(name: &str) -> &'static Self {
        Self::find(name).expect("the routes name RPCs of our own")
    }
}

/// The comment before what is at `path` of a file.
pub(super) fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref();
    let mut places = info.map(|info| info.location.iter()).into_iter().flatten();
    let place = places.find(|place| place.path == path);
    let lines = place.map(|place| place.leading_comments().trim().lines().map(str::trim));
    lines.map_or_else(String::new, |lines| lines.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_rpc_has_a_name_of_its_own() {
        let names: HashSet<_> = Rpc::all().iter().map(|rpc| &rpc.name).collect();
        assert_eq!(names.len(), Rpc::all().len());
        assert_eq!(
            Rpc::named("GetTask").path,
            "/blobcast.v1.EventService/GetTask"
        );
        assert!(!Rpc::named("Subscribe").is_unary && Rpc::find("subscribe").is_none());
    }
}
