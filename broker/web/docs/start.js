// Relative addresses: the broker may live below a path of somebody's proxy. No validator: it would be asked elsewhere.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
