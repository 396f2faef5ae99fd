//! The protos suit code generators of other languages: they have package options, and no name is a
//! reserved word. Whether the generated code compiles is tested by `tests/operations/codegen`.

use blobcast::wire::DESCRIPTOR_SET;
use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    field_options::JsType,
};

/// What fields and methods may not be called: languages in which a keyword cannot follow a dot, or needs another spelling there.
/// C#, Go, PHP and Java are not among them: they write a capital letter or a prefix, which no keyword of theirs has.
const RESERVED_FOR_MEMBERS: [(&str, &str); 8] = [
    (
        "Python",
        "False None True and as assert async await break class continue def del elif else except finally for from global \
         if import in is lambda nonlocal not or pass raise return try while with yield",
    ),
    (
        "C++",
        "alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class \
         co_await co_return co_yield compl concept const const_cast consteval constexpr constinit continue decltype default \
         delete do double dynamic_cast else enum explicit export extern false float for friend goto if inline int long \
         mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register \
         reinterpret_cast requires return short signed sizeof static static_assert static_cast struct switch template this \
         thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor \
         xor_eq",
    ),
    (
        "Rust",
        "abstract as async await become box break const continue crate do dyn else enum extern false final fn for gen if \
         impl in let loop macro match mod move mut override priv pub ref return self static struct super trait true try \
         type typeof unsafe unsized use virtual where while yield",
    ),
    (
        "Kotlin",
        "as break class continue do else false for fun if in interface is null object package return super this throw \
         true try typealias typeof val var when while",
    ),
    (
        "Swift",
        "associatedtype class deinit enum extension fileprivate func import init inout internal let open operator private \
         precedencegroup protocol public rethrows static struct subscript typealias var break case catch continue default \
         defer do else fallthrough for guard if in repeat return throw switch where while any as await false is nil self \
         super throws true try",
    ),
    (
        "Objective-C",
        "alloc autorelease class copy dealloc description hash id init load mutableCopy new release retain self super zone",
    ),
    (
        "Dart",
        "assert await break case catch class const continue default do else enum extends false final finally for hashCode \
         if in is new null rethrow return runtimeType super switch this throw toString true try var void while with yield",
    ),
    (
        "JavaScript",
        "await break case catch class const constructor continue debugger default delete do else enum export extends \
         false finally for function if implements import in instanceof interface let new null package private protected \
         prototype public return static super switch this throw toString true try typeof valueOf var void while with yield",
    ),
];
/// What messages, enums and services may not be called, in any language and spelling.
const RESERVED_FOR_TYPES: &str = "abstract and any array as async await begin bool boolean break byte case catch char class clone const continue date \
     declare default delete do double echo else empty end enum error eval event_args exception exit extends extension \
     false final finally float fn for foreach from func function global goto if implements import in include int integer \
     interface isset iterable let list long map match message mixed mod module namespace never new nil none not null \
     number object operator or parent print private promise protected protocol public readonly record require return \
     self short static status string struct super switch symbol task then this throw trait true try type undef union \
     unset until use using var vec void when where while with xor yield";

fn ours() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(DESCRIPTOR_SET).unwrap();
    let ours: Vec<_> = set
        .file
        .into_iter()
        .filter(|file| file.package() == "blobcast.v1")
        .collect();
    assert_eq!(ours.len(), 3);
    ours
}

#[test]
fn every_file_names_its_package_in_every_language() {
    for file in ours() {
        let options = file.options.as_ref().unwrap();
        assert!(
            options.go_package().ends_with("/blobcast/v1;blobcastv1"),
            "{}",
            file.name()
        );
        assert_eq!(
            (options.java_package(), options.java_multiple_files()),
            ("com.blobcast.v1", true)
        );
        assert_eq!(
            (options.csharp_namespace(), options.objc_class_prefix()),
            ("Blobcast.V1", "BLC")
        );
        assert_eq!(
            (options.ruby_package(), options.php_namespace()),
            ("Blobcast::V1", r"Blobcast\V1")
        );
        assert_eq!(options.swift_prefix(), "Blobcast_V1_");
    }
}

#[test]
fn a_seed_is_text_where_numbers_are_doubles() {
    let files = ours();
    let event = files
        .iter()
        .flat_map(|file| &file.message_type)
        .find(|message| message.name() == "Event")
        .unwrap();
    let seed = event
        .field
        .iter()
        .find(|field| field.name() == "seed")
        .unwrap();
    assert_eq!(seed.options.as_ref().unwrap().jstype(), JsType::JsString);
}

#[test]
fn no_name_is_a_reserved_word_of_a_common_language() {
    let (mut members, mut types) = (Vec::new(), Vec::new());
    for file in &ours() {
        file.message_type
            .iter()
            .for_each(|message| names_of_message(message, &mut members, &mut types));
        file.enum_type
            .iter()
            .for_each(|described| names_of_enum(described, &mut members, &mut types));
        for service in &file.service {
            types.push(service.name().to_owned());
            members.extend(service.method.iter().map(|method| method.name().to_owned()));
        }
    }
    assert!(
        members.len() > 150 && types.len() > 40,
        "{} and {}",
        members.len(),
        types.len()
    );
    for member in members {
        // As it is, as Python and Rust write it, and as Kotlin and Swift do.
        for spelled in [member.clone(), snake_case(&member), camel_case(&member)] {
            for (language, words) in RESERVED_FOR_MEMBERS {
                assert!(
                    !words.split(' ').any(|word| word == spelled),
                    "{spelled} is reserved in {language}"
                );
            }
        }
    }
    for name in types {
        assert!(
            !RESERVED_FOR_TYPES
                .split(' ')
                .any(|word| word == snake_case(&name)),
            "{name} is reserved somewhere"
        );
    }
}

fn names_of_message(message: &DescriptorProto, members: &mut Vec<String>, types: &mut Vec<String>) {
    // What a map is made of has names of protobuf's own.
    if message
        .options
        .as_ref()
        .is_some_and(|options| options.map_entry())
    {
        return;
    }
    types.push(message.name().to_owned());
    members.extend(message.field.iter().map(|field| field.name().to_owned()));
    members.extend(
        message
            .oneof_decl
            .iter()
            .map(|oneof| oneof.name().trim_start_matches('_').to_owned()),
    );
    message
        .nested_type
        .iter()
        .for_each(|nested| names_of_message(nested, members, types));
    message
        .enum_type
        .iter()
        .for_each(|nested| names_of_enum(nested, members, types));
}

/// Swift, C# and Rust leave out the prefix that a value shares with its enum.
fn names_of_enum(
    described: &EnumDescriptorProto,
    members: &mut Vec<String>,
    types: &mut Vec<String>,
) {
    types.push(described.name().to_owned());
    let prefix = snake_case(described.name()).to_uppercase() + "_";
    for value in &described.value {
        members.push(value.name().to_owned());
        members.push(
            value
                .name()
                .strip_prefix(&prefix)
                .expect("values begin with their enum's name")
                .to_lowercase(),
        );
    }
}

fn snake_case(name: &str) -> String {
    let mut spelled = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !spelled.is_empty() && !spelled.ends_with('_') {
            spelled.push('_');
        }
        spelled.extend(letter.to_lowercase());
    }
    spelled
}

fn camel_case(name: &str) -> String {
    let snake = if name.contains('_') {
        name.to_lowercase()
    } else {
        snake_case(name)
    };
    let mut words = snake.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |spelled, word| {
        let mut letters = word.chars();
        spelled
            + &letters
                .next()
                .map(|letter| letter.to_uppercase().to_string())
                .unwrap_or_default()
            + letters.as_str()
    })
}
