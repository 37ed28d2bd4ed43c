"""The fleet page: HTML for people, at the operators' port beside the API.

The server renders every page with Jinja2; a small script patches what changes. Each page works without the
script: filters are GET forms, actions are pages with a form.

To add a page:

1. a module here with a function `async def show(visit: Visit) -> Response` that ends in `visit.render(...)`;
2. `ROUTES` in that module: a `PageRoute` for each path, with the role that it needs, and the module in
   `app._MODULES`; a form's function reads `visit.form`, which was checked, and ends in `visit.go_to(...)`;
3. a template in `templates/` that extends `base.html`: its `<main>`, and `{{ visit.csrf_field }}` in each
   form that posts;
4. where the page changes by itself: a function `live(visit) -> LiveView` in `LIVE` of the module. Each
   element that changes is a `Part` with the element's id; the page itself is rendered from the same parts
   (`visit.part_html`), so that the stream sends only what came later;
5. a link in `base.html` if it belongs into the navigation.

An action opens as a dialog where its link has `data-dialog`: the script fetches the page, and shows the
element with `data-dialog-body` of it.
"""
