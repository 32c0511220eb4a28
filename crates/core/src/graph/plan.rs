//! What depends on what, and how long the longest way to the end is from each node.

/// No edge, and no node.
const NONE: u32 = u32::MAX;

/// A graph cannot be run: each of these nodes needs the one before it, and the first one the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cycle(pub Vec<u32>);

#[derive(Debug, Clone, Copy)]
struct Edge {
    to: u32,
    /// The next edge of the same origin.
    next: u32,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    weight: f64,
    priority: i32,
    /// The first edge from here.
    first: u32,
    /// Where the dependencies begin in the list of all, and how many there are.
    begin: u32,
    count: u32,
    /// The last node that was linked to this one: what a second edge between two nodes is known by.
    linked: u32,
}

/// Nodes and edges. An edge that is added twice is one edge.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    nodes: Vec<Node>,
    edges: Vec<Edge>,
    dependencies: Vec<u32>,
    /// The longest way from each node to the end, its own weight included.
    longest: Vec<f64>,
    /// All nodes, each behind those that it depends on.
    order: Vec<u32>,
}

impl Plan {
    /// Adds a node without dependencies. Weights are durations in any unit, at least 0.
    pub fn add(&mut self, weight: f64, priority: i32) -> u32 {
        let weight = if weight.is_finite() {
            weight.max(0.0)
        } else {
            0.0
        };
        self.nodes.push(Node {
            weight,
            priority,
            first: NONE,
            begin: 0,
            count: 0,
            linked: NONE,
        });
        self.longest.push(weight);
        self.nodes.len() as u32 - 1
    }

    /// Says what a node depends on: once for each node, and of nodes that there are.
    pub fn link(&mut self, to: u32, dependencies: impl IntoIterator<Item = u32>) {
        let begin = self.dependencies.len() as u32;
        for from in dependencies {
            let origin = &mut self.nodes[from as usize];
            if origin.linked == to {
                continue;
            }
            origin.linked = to;
            self.edges.push(Edge {
                to,
                next: origin.first,
            });
            origin.first = self.edges.len() as u32 - 1;
            self.dependencies.push(from);
        }
        let node = &mut self.nodes[to as usize];
        node.begin = begin;
        node.count = self.dependencies.len() as u32 - begin;
    }

    /// Adds one edge to a sealed plan that has no such edge, and in which it closes no cycle.
    pub(super) fn join(&mut self, from: u32, to: u32) {
        let Node { begin, count, .. } = self.nodes[to as usize];
        let moved = begin as usize..(begin + count) as usize;
        let start = self.dependencies.len() as u32;
        self.dependencies.extend_from_within(moved);
        self.dependencies.push(from);
        let node = &mut self.nodes[to as usize];
        node.begin = start;
        node.count = count + 1;
        let origin = &mut self.nodes[from as usize];
        self.edges.push(Edge {
            to,
            next: origin.first,
        });
        origin.first = self.edges.len() as u32 - 1;
    }

    /// Orders the nodes and finds the longest ways.
    ///
    /// # Errors
    ///
    /// The shortest cycle that is met first, if there is one.
    pub fn seal(&mut self) -> Result<(), Cycle> {
        let mut missing: Vec<u32> = self.nodes.iter().map(|node| node.count).collect();
        self.order = (0..self.len())
            .filter(|&node| missing[node as usize] == 0)
            .collect();
        let mut at = 0;
        while let Some(&node) = self.order.get(at) {
            at += 1;
            let mut next = self.first_edge(node);
            while let Some((to, after)) = self.edge(next) {
                next = after;
                missing[to as usize] -= 1;
                if missing[to as usize] == 0 {
                    self.order.push(to);
                }
            }
        }
        if self.order.len() < self.nodes.len() {
            return Err(self.cycle(&missing));
        }
        self.weigh();
        Ok(())
    }

    /// Gives nodes other weights, for the longest ways of a sealed plan.
    pub fn weigh_anew(&mut self, weights: impl IntoIterator<Item = (u32, f64)>) {
        for (node, weight) in weights {
            if weight.is_finite() {
                self.nodes[node as usize].weight = weight.max(0.0);
            }
        }
        self.weigh();
    }

    fn weigh(&mut self) {
        for &node in self.order.iter().rev() {
            let behind = self
                .successors(node)
                .map(|to| self.longest[to as usize])
                .fold(0.0, f64::max);
            self.longest[node as usize] = self.nodes[node as usize].weight + behind;
        }
    }

    /// A cycle among the nodes that miss a dependency. Each of them has one of its kind before it, so that
    /// whoever walks backwards comes round.
    fn cycle(&self, missing: &[u32]) -> Cycle {
        let mut steps = vec![NONE; self.nodes.len()];
        let mut path: Vec<u32> = Vec::new();
        let mut next = (0..self.len()).find(|&node| missing[node as usize] > 0);
        while let Some(node) = next {
            let met = steps[node as usize];
            if met != NONE {
                path.drain(..met as usize);
                break;
            }
            steps[node as usize] = path.len() as u32;
            path.push(node);
            next = self
                .dependencies(node)
                .iter()
                .copied()
                .find(|&from| missing[from as usize] > 0);
        }
        // Backwards each one needs the next one.
        path.reverse();
        Cycle(path)
    }

    pub fn len(&self) -> u32 {
        self.nodes.len() as u32
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How many edges there are.
    pub fn edge_count(&self) -> usize {
        self.edges.len()
    }

    /// What a node depends on, each once, in the order in which it was said.
    pub fn dependencies(&self, node: u32) -> &[u32] {
        let node = &self.nodes[node as usize];
        &self.dependencies[node.begin as usize..(node.begin + node.count) as usize]
    }

    /// The first edge from a node, for [`edge`](Self::edge).
    #[inline]
    pub(super) fn first_edge(&self, node: u32) -> u32 {
        self.nodes[node as usize].first
    }

    /// Where an edge leads, and the next one of the same origin.
    #[inline]
    pub(super) fn edge(&self, edge: u32) -> Option<(u32, u32)> {
        let Edge { to, next } = *self.edges.get(edge as usize)?;
        Some((to, next))
    }

    /// What depends on a node.
    pub fn successors(&self, node: u32) -> impl Iterator<Item = u32> + '_ {
        let mut next = self.first_edge(node);
        std::iter::from_fn(move || {
            let (to, after) = self.edge(next)?;
            next = after;
            Some(to)
        })
    }

    pub fn priority(&self, node: u32) -> i32 {
        self.nodes[node as usize].priority
    }

    /// The longest way from a node to the end, its own weight included.
    pub fn longest(&self, node: u32) -> f64 {
        self.longest[node as usize]
    }

    /// Which nodes have to run for these targets, if those that are `given` need not.
    pub fn needed(
        &self,
        targets: impl IntoIterator<Item = u32>,
        given: impl Fn(u32) -> bool,
    ) -> Vec<bool> {
        let mut needed = vec![false; self.nodes.len()];
        let mut open: Vec<u32> = targets.into_iter().collect();
        while let Some(node) = open.pop() {
            if std::mem::replace(&mut needed[node as usize], true) || given(node) {
                continue;
            }
            open.extend_from_slice(self.dependencies(node));
        }
        needed
    }

    /// Groups of nodes without edges inside of a group, each node in the first one that it can be in.
    pub fn groups(&self) -> Vec<Vec<u32>> {
        let mut level = vec![0; self.nodes.len()];
        let mut groups: Vec<Vec<u32>> = Vec::new();
        for &node in &self.order {
            let before = self.dependencies(node).iter();
            let at = before
                .map(|&from| level[from as usize] + 1)
                .max()
                .unwrap_or(0);
            level[node as usize] = at;
            if groups.len() == at {
                groups.push(Vec::new());
            }
            groups[at].push(node);
        }
        for group in &mut groups {
            group.sort_unstable();
        }
        groups
    }

    /// What a run was waiting for: the node that ended last, before it the one that ended last of those that it
    /// depends on, and so on; in the order in which they ran. `end` says when a node has ended, if it ran.
    pub fn chain(&self, end: impl Fn(u32) -> Option<i64>) -> Vec<u32> {
        let latest = |nodes: &mut dyn Iterator<Item = u32>| {
            let ended = nodes.filter_map(|node| Some((end(node)?, node)));
            // Of those that ended at the same time the first one.
            ended
                .reduce(|a, b| if b.0 > a.0 { b } else { a })
                .map(|(_, node)| node)
        };
        let mut chain = Vec::new();
        let mut next = latest(&mut (0..self.len()));
        while let Some(node) = next {
            chain.push(node);
            next = latest(&mut self.dependencies(node).iter().copied());
        }
        chain.reverse();
        chain
    }

    /// A way along edges from one node to another, both included.
    pub(super) fn path(&self, from: u32, to: u32) -> Option<Vec<u32>> {
        let mut before = vec![NONE; self.nodes.len()];
        let mut open = vec![from];
        before[from as usize] = from;
        while let Some(node) = open.pop() {
            if node == to {
                let mut path = vec![to];
                let mut at = to;
                while at != from {
                    at = before[at as usize];
                    path.push(at);
                }
                path.reverse();
                return Some(path);
            }
            for next in self.successors(node) {
                if before[next as usize] == NONE {
                    before[next as usize] = node;
                    open.push(next);
                }
            }
        }
        None
    }
}
