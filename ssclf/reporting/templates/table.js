// Sort, filter and pictures for table#rows. Rows are made once, by the page; they are only moved and hidden.
// Each row carries data-<key> for every sortable column and every filter; pictures come from script#pictures.
(() => {
  const table = document.getElementById("rows");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const shown = document.getElementById("shown");
  const search = document.getElementById("search");
  const filters = [...document.querySelectorAll("select[data-filter]")];
  const limits = [...document.querySelectorAll("input[data-most]")];
  const text = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  const has = (row, select) => !select.value || row.dataset[select.dataset.filter].split(";").includes(select.value);
  const within = (row, input) => !input.value || parseFloat(row.dataset[input.dataset.most]) <= parseFloat(input.value);
  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const keep = filters.every((select) => has(row, select)) && limits.every((input) => within(row, input)) &&
        words.every((word) => text.get(row).includes(word));
      row.hidden = !keep;
      count += keep;
    }
    shown.textContent = `${count} of ${rows.length}`;
  }

  function sort(header) {
    const key = header.dataset.key, numeric = header.classList.contains("number");
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => (numeric ? parseFloat(row.dataset[key]) : row.dataset[key]);
    const missing = (v) => numeric ? Number.isNaN(v) : v === "";
    const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    const keyed = rows.map((row, index) => [value(row), index, row]);
    keyed.sort(([a, i], [b, j]) =>
      missing(a) - missing(b) || (down ? compare(b, a) : compare(a, b)) || i - j);
    body.append(...keyed.map(([, , row]) => row));
  }

  for (const input of [search, ...limits]) input.addEventListener("input", filter);
  for (const select of filters) select.addEventListener("change", filter);
  for (const button of table.tHead.querySelectorAll("button"))
    button.addEventListener("click", () => sort(button.parentElement));
  filter();

  // Pictures are decoded when their row comes near the window, not before.
  const pictures = document.getElementById("pictures");
  if (pictures) {
    const data = JSON.parse(pictures.textContent);
    const near = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        near.unobserve(entry.target);
        entry.target.src = data[entry.target.dataset.picture];
      }
    }, { rootMargin: "800px" });
    const images = [...table.querySelectorAll("img[data-picture]")];
    for (const image of images) near.observe(image);
    addEventListener("beforeprint", () => {
      for (const image of images) if (!image.src) image.src = data[image.dataset.picture];
    });
  }
})();
