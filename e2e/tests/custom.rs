//! Custom resources with plain `kubectl`, on a simulated cluster.

use skiff_e2e::up::{Up, needs_kubectl};

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.shop.example.com}
spec:
  group: shop.example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns:
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    - {name: Color, type: string, jsonPath: .spec.color, priority: 1}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}}
    schema:
      openAPIV3Schema:
        type: object
        description: A widget of the shop.
        properties:
          spec:
            type: object
            properties:
              replicas: {type: integer, minimum: 0, default: 1, description: How many there shall be.}
              color: {type: string, enum: [red, blue]}
          status: {type: object, properties: {replicas: {type: integer}}}
  - name: v1alpha1
    served: true
    storage: false
    deprecated: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

fn widget(spec: &str) -> String {
    format!("apiVersion: shop.example.com/v1\nkind: Widget\nmetadata: {{name: one}}\nspec: {{{spec}}}\n")
}

#[test]
fn a_custom_resource_is_like_any_other() {
    let Some(()) = needs_kubectl("kubectl: custom resources") else { return };
    let up = Up::simulated("custom", 0);
    assert!(up.feed(&["apply", "-f", "-"], DEFINITION).contains("created"));
    // At once, without waiting for anything.
    assert!(up.feed(&["apply", "-f", "-"], &widget("color: red")).contains("widget.shop.example.com/one created"));
    up.ok(&["wait", "--for=condition=Established", "crd/widgets.shop.example.com", "--timeout=10s"]);
    up.shows(&["get", "wd"], &["NAME", "REPLICAS", "AGE", "one", "1"]);
    up.shows(&["get", "widgets", "-o", "wide"], &["COLOR", "red"]);
    up.shows(&["get", "all"], &["widget.shop.example.com/one"]);
    up.shows(&["api-resources", "--api-group", "shop.example.com"], &["widgets", "wd", "shop.example.com/v1", "true", "Widget"]);
    up.shows(&["explain", "widget"], &["A widget of the shop."]);
    up.shows(&["explain", "widget.spec.replicas"], &["How many there shall be."]);
    up.ok(&["scale", "wd/one", "--replicas", "3"]);
    up.shows(&["get", "wd", "one", "-o", "jsonpath={.spec.replicas} {.metadata.generation}"], &["3 2"]);
    up.ok(&["patch", "wd", "one", "--subresource=status", "--type=merge", "-p", "{\"status\":{\"replicas\":3}}"]);
    up.fails(&["patch", "wd", "one", "--type=merge", "-p", "{\"spec\":{\"color\":\"green\"}}"], "spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\"");
    up.fails(&["patch", "wd", "one", "--type=strategic", "-p", "{}"], "application/strategic-merge-patch+json is not supported by shop.example.com/v1, Kind=Widget");
    let applied = up.feed(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &widget("color: blue"));
    assert!(applied.contains("serverside-applied"), "{applied}");
    let shown = up.ok(&["get", "widgets.v1alpha1.shop.example.com", "-o", "yaml"]);
    assert!(shown.contains("apiVersion: shop.example.com/v1alpha1") && shown.contains("color: blue"), "{shown}");
    up.ok(&["delete", "crd", "widgets.shop.example.com", "--timeout=30s"]);
    up.fails(&["get", "wd"], "the server could not find the requested resource");
}
